"""Rows 8, 9 and 23: numbers that are not finite are located; extreme routing stays exact."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import TEXT, folder_of, tiny_model
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.model.losses import language_loss, summed
from switch_lm.optim.options import AdamWOptions
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import SwitchOptions
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import TrainingError
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.module import SwitchModule
from switch_lm.training.nonfinite import locate
from switch_lm.training.start import train

Spoil = Callable[[SwitchModule], None]


def spoiled_at(step: int, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something goes wrong before step number `step` (from 1)."""
    start = SwitchModule.on_train_batch_start

    def spoiling(self: SwitchModule, batch: object, number: int) -> None:
        start(self, batch, number)  # type: ignore[arg-type]
        if self.global_step + 1 == step:
            with torch.no_grad():
                spoil(self)

    monkeypatch.setattr(SwitchModule, "on_train_batch_start", spoiling)


def message_of(config: Config) -> str:
    with pytest.raises(TrainingError) as failure:
        train(config)
    return str(failure.value)


def falling_rate(config: Config) -> Config:
    """Step n of 12 has the rate 0.001 (12 - n)."""
    return replace(config, optim=AdamWOptions(lr=0.011, schedule="linear", warmup_steps=0))


def require_good_checkpoints(config: Config, step: int) -> None:
    """Best and last are of a step before the fault, and hold no NaN."""
    for path in (folder_of(config) / "checkpoints").iterdir():
        content = checkpoint.read(path)
        assert content["global_step"] < step
        assert all(torch.isfinite(weight).all() for weight in content["state_dict"].values())


@pytest.mark.row(8)
def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_rate_and_last_good_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(module: SwitchModule) -> None:
        module.model.get_parameter("blocks.0.attention.qkv.weight")[:] = 3e38

    spoiled_at(7, too_large, monkeypatch)
    message = message_of(config)
    assert "the loss became nan at step 7 (learning rates 0." in message
    assert "first in the output of blocks.0." in message
    assert f"The last good checkpoint: {folder_of(config)}/checkpoints/last.ckpt" in message
    require_good_checkpoints(config, 7)


@pytest.mark.row(8)
@pytest.mark.parametrize("rate", [1e10, 1e37])
def test_learning_rates_that_are_far_too_high_end_the_run_and_save_nothing_bad(config: Config, rate: float) -> None:
    config.optim.name, config.optim.lr, config.trainer.checkpoint_every = "adamw", rate, 1
    of_adamw = r" at step \d+ \(learning rates .*\), first in .*; lower optim\.lr, or lengthen optim\.warmup_steps"
    assert re.search(of_adamw, message_of(config))
    require_good_checkpoints(config, 12)


def gradients_spoiled_at(step: int, spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something goes wrong in the gradients of step number `step` (from 1), before they are clipped."""
    clip = SwitchModule.configure_gradient_clipping

    def spoiling(self: SwitchModule, *args: object, **kwargs: object) -> None:
        if self.global_step + 1 == step:
            spoil(self)
        clip(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(SwitchModule, "configure_gradient_clipping", spoiling)


@pytest.mark.row(8)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["embedding.weight", "blocks.1.ffn.experts.w_in_EDF", "head.weight"])
def test_a_gradient_that_is_not_finite_is_named_before_the_weights_change(
    config: Config, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_number(module: SwitchModule) -> None:
        gradient = module.model.get_parameter(name).grad
        assert gradient is not None
        gradient.view(-1)[7] = value

    gradients_spoiled_at(6, one_number, monkeypatch)
    message = message_of(config)
    assert f"the gradient norm became {value} at step 6" in message
    assert f"first in the gradient of {name} ({value})" in message
    require_good_checkpoints(config, 6)


@pytest.mark.row(8)
def test_a_nan_in_the_backward_pass_is_located_where_it_arose_and_not_where_it_ended(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(module: object, inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)

    def attention(module: SwitchModule) -> None:
        module.model.get_submodule("blocks.1.attention").register_forward_hook(breaks)

    spoiled_at(6, attention, monkeypatch)
    message = message_of(config)
    assert "the gradient norm became nan at step 6" in message  # the embedding's is not, either
    assert "first in the gradient of blocks.1.attention.out.weight (nan)" in message


@pytest.mark.row(8)
def test_finite_gradients_whose_norm_overflows_are_not_blamed_one_by_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(module: SwitchModule) -> None:
        gradient = module.model.head.weight.grad
        assert gradient is not None
        gradient[:] = 1e30  # its square is more than float32 holds

    gradients_spoiled_at(6, large, monkeypatch)
    assert "first in the norm itself: every gradient is finite;" in message_of(config)


@pytest.mark.row(8)
@pytest.mark.parametrize(("loss", "place"), [(math.inf, "the loss itself"), (1.0, "compiled code or its noise")])
def test_a_loss_whose_outputs_are_all_finite_is_not_blamed_on_a_layer(loss: float, place: str) -> None:
    model = tiny_model()
    assert locate(model, lambda: model(torch.zeros(1, 2, dtype=torch.long)).logits.sum() * 0 + loss).startswith(place)


@pytest.mark.row(8)
def test_weights_that_are_not_finite_are_not_saved(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = SwitchModule.optimizer_step

    def spoiling(self: SwitchModule, *args: object, **kwargs: object) -> None:
        moved(self, *args, **kwargs)
        if self.global_step + 1 == 8:  # the trainer counts it afterwards
            with torch.no_grad():
                self.model.head.weight[0, 0] = math.nan

    monkeypatch.setattr(SwitchModule, "optimizer_step", spoiling)
    message = message_of(falling_rate(config))
    assert "nothing was saved: weights are not finite at step 8 (learning rates 0.004)" in message
    assert "first in head.weight (nan); lower" in message
    require_good_checkpoints(config, 8)


@pytest.mark.row(8)
def test_a_validation_loss_that_is_not_finite_names_step_rate_and_place_too(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = SwitchModule.on_validation_epoch_start

    def spoiling(self: SwitchModule) -> None:
        start(self)
        if self.global_step == 10:
            with torch.no_grad():
                self.model.get_parameter("blocks.1.attention.out.weight")[0, 0] = math.nan

    monkeypatch.setattr(SwitchModule, "on_validation_epoch_start", spoiling)
    message = message_of(falling_rate(config))
    assert "the validation loss became nan at step 10 (learning rates 0.002)" in message
    assert "first in the weight blocks.1.attention.out.weight (nan)" in message
    require_good_checkpoints(config, 11)  # that of step 10 was written before its validation


@pytest.mark.row(9)
def test_a_nan_in_one_router_is_located_there(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_router(module: SwitchModule) -> None:
        module.model.get_parameter("blocks.1.ffn.router.w_DE")[3, 2] = math.nan

    spoiled_at(7, one_router, monkeypatch)
    message = message_of(config)
    assert "the loss became nan at step 7" in message
    assert "first in the weight blocks.1.ffn.router.w_DE (nan)" in message
    require_good_checkpoints(config, 7)


@pytest.mark.row(23)
@pytest.mark.parametrize(("rows", "positions"), [(1, 1), (1, 16), (4, 1), (4, 16)])
@pytest.mark.parametrize("factor", [None, 0.5, 1.0])
@pytest.mark.parametrize("case", ["all to one", "one without any"])
def test_extreme_loads_give_finite_losses_and_exact_counts(
    rows: int, positions: int, factor: float | None, case: str
) -> None:
    model = tiny_model(capacity_factor=factor, router=SwitchOptions(jitter=0.0)).train()
    num_experts, num_tokens = 4, rows * positions
    for block in range(2):
        norm_D = model.get_parameter(f"blocks.{block}.norm_ffn.weight")
        router_DE = model.get_parameter(f"blocks.{block}.ffn.router.w_DE")
        with torch.no_grad():
            norm_D.fill_(0.0)  # the router sees zeros: all logits are equal, the first expert wins
            if case == "one without any":
                norm_D.fill_(1.0)
                router_DE[:, 3] = 0.0
                router_DE[:, 2] = -router_DE[:, 1]  # the larger of the two is never below 0
    ids = Vocabulary.of(TEXT).encode(TEXT)[: num_tokens + 1]
    output = model(ids[:-1].view(rows, positions))
    loss = language_loss(output.logits, ids[1:].view(rows, positions))
    total = loss + 0.01 * summed(load_balancing_loss, output.routings)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    for routing in output.routings:
        assert int(routing.load_E.sum()) == num_tokens
        if case == "all to one":
            assert routing.load_E.tolist() == [num_tokens, 0, 0, 0]
        else:
            assert int(routing.load_E[3]) == 0
        slots = num_tokens if factor is None else min(num_tokens, max(1, math.ceil(factor * num_tokens / num_experts)))
        kept = routing.load_E.clamp(max=slots)
        assert torch.equal(routing.kept_E, kept)
        assert int(routing.kept_TK.sum()) == int(kept.sum())  # kept + dropped = selected
