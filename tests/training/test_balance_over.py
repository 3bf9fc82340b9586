"""Over which tokens the balance and the importance loss count: a row, or a whole step of several micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import folder_of, logged
from small_models import batch, module_of, short_run

from switch_lm.optim.options import AdamWOptions
from switch_lm.routers.losses import importance_loss, load_balancing_loss
from switch_lm.routers.routing import Routing
from switch_lm.training.start import train


def test_with_each_row_of_its_own_two_rows_that_lean_to_one_expert_each_are_not_balanced() -> None:
    """f = (1, 0) and P = (0.9, 0.1) in one row, and turned around in the other; of both together all are 1/2."""
    expert_N = torch.tensor([0, 0, 1, 1])
    probs_TE = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    routing = Routing.listed(
        token_N=torch.arange(4), expert_N=expert_N, gate_N=torch.full((4,), 0.9), scores_TE=probs_TE
    )
    by_row = replace(routing, balanced_rows=2)
    assert float(load_balancing_loss(routing)) == pytest.approx(2 * (0.5 * 0.5 + 0.5 * 0.5))
    assert float(load_balancing_loss(by_row)) == pytest.approx(2 * 1.0 * 0.9)
    assert float(importance_loss(routing)) == pytest.approx(0.0)
    assert float(importance_loss(by_row)) == pytest.approx(0.9**2 / 0.9**2)  # of 1.8 and 0: variance over squared mean
    unused = replace(by_row, used_N=torch.tensor([True, True, True, False]))
    assert float(load_balancing_loss(unused)) == pytest.approx(1.8)


@pytest.mark.parametrize("top_k", [1, 2])
def test_over_sequences_the_losses_are_the_means_of_those_of_each_row_alone(top_k: int) -> None:
    module = module_of(top_k=top_k, capacity_factor=None, importance=0.1)
    module.config = replace(module.config, balance_over="sequence")
    ids, targets = batch()
    whole = module.losses(ids, targets)
    rows = [module.losses(ids[i : i + 1], targets[i : i + 1]) for i in range(len(ids))]
    for tag in ("train/balance_loss", "train/importance_loss"):
        mean = torch.stack([row.by_tag()[tag] for row in rows]).mean()
        torch.testing.assert_close(whole.by_tag()[tag], mean)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_over_a_step_two_micro_batches_have_the_numbers_of_one_batch(tmp_path: Path, precision: str) -> None:
    def numbers(over: str, accumulate: int) -> list[float]:
        config = short_run(tmp_path)
        config = replace(
            config, balance_over=over, alpha=1.0, optim=AdamWOptions(warmup_steps=0), name=f"{over}{accumulate}",
            data=replace(config.data, batch_size=8 // accumulate),
            trainer=replace(config.trainer, accumulate=accumulate, precision=precision),
            model=replace(config.model, capacity_factor=None),
        )  # fmt: skip
        work = train(config)["computation"]
        passes = sum(work[f"{kind}_per_step"]["executed"] for kind in ("forward", "backward"))
        assert work["training"] / work["backward_per_step"]["executed"] / 2 == (2.0 if over == "step" else 1.5)
        assert work["training"] == 2 * passes
        rows = logged(folder_of(config))
        return [rows[tag][step] for tag in ("moe/balance_loss", "optim/gradient_norm") for step in (1, 2)]

    whole, step, own = (numbers(*case) for case in (("global", 1), ("step", 2), ("global", 2)))
    close = 1e-5 if precision == "fp32" else 3e-3
    assert step == pytest.approx(whole, rel=close)
    assert own != pytest.approx(whole, rel=close)
