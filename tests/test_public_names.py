"""The public names of the package: how they are imported, and what a user can rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import switch_lm
from switch_lm import Routing, SwitchFeedForward, SwitchLM, expert_capacity, load, load_balancing_loss
from switch_lm.model.config import ModelConfig
from switch_lm.routers.options import SwitchOptions, TopKOptions
from switch_lm.storage.checkpoint import CheckpointError

NAMES = {
    "Board", "Expected", "Promise", "Router", "Routing", "SwitchFeedForward", "SwitchLM", "expert_capacity", "load",
    "load_balancing_loss",
}  # fmt: skip
ROOT = Path(switch_lm.__file__).parents[1]


def test_the_public_names_are_listed_and_no_others() -> None:
    assert set(switch_lm.__all__) == NAMES
    assert set(dir(switch_lm)) >= NAMES | {"__version__"}
    for name in NAMES:
        assert getattr(switch_lm, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'switch_lm' has no attribute 'SwitchLn'"):
        _ = switch_lm.SwitchLn
    with pytest.raises(ImportError, match="SwitchLn"):
        from switch_lm import SwitchLn  # noqa: F401


def test_the_package_loads_torch_at_the_first_use_of_a_name_and_never_hydra_or_lightning() -> None:
    code = (
        "import sys, switch_lm; dir(switch_lm); print('torch' in sys.modules); from switch_lm import load;"
        "print(*(name in sys.modules for name in ('torch', 'hydra', 'lightning')))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["False", "True False False"]


def test_four_sizes_make_a_layer_of_the_paper() -> None:
    """One expert per token, gates of raw probability, 1 % jitter, dropless in evaluation."""
    torch.manual_seed(0)
    layer = SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, capacity_factor=0.5)
    assert (layer.router.options, layer.router.options.jitter) == (SwitchOptions(), 0.01)
    assert (layer.router.name, layer.shared, layer.router.bias_E) == ("switch", None, None)
    assert {name: tuple(weight.shape) for name, weight in layer.named_parameters()} == {
        "router.w_DE": (8, 4), "experts.w_in_EDF": (4, 8, 12), "experts.w_out_EFD": (4, 12, 8),
    }  # fmt: skip
    x_BSD = torch.randn(3, 8, 8)
    y_BSD, routing = layer.eval()(x_BSD)
    x_TD = x_BSD.flatten(0, 1)
    gate_T, expert_T = (x_TD @ torch.as_tensor(layer.router.w_DE)).softmax(dim=1).max(dim=1)
    each_TD = [
        gate * ((x_D @ layer.experts.w_in_EDF[e]).relu() @ layer.experts.w_out_EFD[e])
        for x_D, gate, e in zip(x_TD, gate_T, expert_T, strict=True)
    ]
    torch.testing.assert_close(y_BSD.flatten(0, 1), torch.stack(each_TD))
    assert routing.capacity is None
    assert layer.train()(x_BSD)[1].capacity == expert_capacity(24, 4, 0.5) == 3


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_routing_has_its_public_fields_in_their_shapes(top_k: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(num_layers=1, d_model=8, num_heads=2, d_ff=12, num_experts=4)
    model = SwitchLM(config, 11, router=TopKOptions(top_k=top_k))
    (routing,) = model(torch.arange(10).view(2, 5)).routings
    assert isinstance(routing, Routing)
    names = ("load_E", "probs_TE", "expert_TK", "kept_TK", "gate_TK")
    choices = (10, top_k)
    assert [tuple(getattr(routing, name).shape) for name in names] == [(4,), (10, 4), choices, choices, choices]
    f_E, p_E = routing.load_E / (10 * top_k), routing.probs_TE.mean(dim=0)
    torch.testing.assert_close(load_balancing_loss(routing), 4 * (f_E * p_E).sum())


def test_load_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path)
