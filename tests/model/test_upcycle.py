"""Sparse upcycling: a Switch model that starts from a dense one computes the same before training."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import logged, tiny_model
from small_models import short_run

from switch_lm.config.keys import ConfigError
from switch_lm.model.upcycle import upcycle
from switch_lm.routers.options import SwitchOptions
from switch_lm.training.start import train

SAME = SwitchOptions(gate_scale="straight_through", jitter=0.0)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(10, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("switch_every", [1, 2])
def test_one_straight_through_choice_without_capacity_computes_what_the_dense_model_does(switch_every: int) -> None:
    dense, model = tiny_model(10, switch_every=0), tiny_model(10, switch_every=switch_every, router=SAME)
    assert not torch.allclose(logits_of(model), logits_of(dense), atol=1e-2)
    upcycle(model, dense)
    assert torch.allclose(logits_of(model), logits_of(dense), atol=1e-5)


def test_routers_keep_their_initial_weights_and_every_expert_is_the_dense_feed_forward() -> None:
    dense, model = tiny_model(10, switch_every=0), tiny_model(10)
    router = model.state_dict()["blocks.1.ffn.router.w_DE"].clone()
    upcycle(model, dense)
    weights = model.state_dict()
    assert torch.equal(weights["blocks.1.ffn.router.w_DE"], router)
    for expert in weights["blocks.1.ffn.experts.w_in_EDF"]:
        assert torch.equal(expert, dense.state_dict()["blocks.1.ffn.w_in.weight"].T)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({}, "must be dense"),
        ({"switch_every": 0, "d_ff": 48}, r"model\.d_ff is 48 there and 32 here"),
        ({"switch_every": 0, "num_layers": 1}, r"model\.num_layers is 1 there and 2 here"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_and_changes_nothing(source: dict[str, Any], reason: str) -> None:
    model = tiny_model(10)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        upcycle(model, tiny_model(10, **source))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_run_that_starts_from_a_dense_one_starts_at_its_validation_loss(tmp_path: Path) -> None:
    config = short_run(tmp_path)
    dense = train(replace(config, name="dense", model=replace(config.model, switch_every=0)))
    dropless = replace(config.model, capacity_factor=None)
    train(replace(config, name="up", init_from="dense", model=dropless, router=SAME))
    losses = logged(tmp_path / "outputs" / "runs" / "up")["val/loss"]
    assert list(losses) == [0, 1, 2]
    assert losses[0] == pytest.approx(dense["best_val_loss"], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0], abs=1e-5)


def test_a_missing_dense_run_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_from=nowhere"):
        train(replace(short_run(tmp_path), init_from="nowhere"))
    assert not (tmp_path / "outputs").exists()
