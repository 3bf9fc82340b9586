"""Figures of routers that give a token any number of experts, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import ledger
from switch_lm.measure.metrics import RoutingSums, first_choice, layer_scalars
from switch_lm.measure.tallies import DropTally, ValidationTally
from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import BalanceOptions, Problem, RouterOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter

E = 2


def routing(experts: Sequence[Sequence[int]], *, kept: int | None = None) -> Routing:
    """Tokens with these experts, in a list of T x E; each expert keeps the first `kept`."""
    T = len(experts)
    probs_TE = torch.full((T, E), 0.5)
    return Routing.listed(
        token_N=torch.arange(T).repeat_interleave(E),
        expert_N=torch.arange(E).repeat(T),
        gate_N=probs_TE.flatten(),
        scores_TE=probs_TE,
        used_N=torch.tensor([[e in chosen for e in range(E)] for chosen in experts]).flatten(),
        capacity=kept,
    )


def test_the_share_dropped_is_that_of_each_layers_own_choices() -> None:
    first, second = routing([[0], [0], []], kept=1), routing([[0, 1], [0, 1], [0]], kept=2)
    drops = DropTally(num_layers=2)
    drops.add([first, second])  # 1 of 2 and 1 of 5
    drops.end_stretch()
    assert drops.whole_run_L == [1 / 2, 1 / 5]
    assert drops.last_stretch == 2 / 7
    assert drops.selected_L == [2 / 3, 5 / 3]
    again = DropTally(num_layers=2)
    again.load_state_dict(drops.state_dict())
    again.add([first, second])
    again.end_stretch()
    assert (again.whole_run_L, again.last_stretch) == ([2 / 4, 2 / 10], 2 / 7)


def test_a_step_in_which_no_expert_takes_any_token_has_finite_losses_and_figures() -> None:
    nobody = routing([[], [], []])
    assert load_balancing_loss(nobody) == 0
    scalars = layer_scalars(RoutingSums.of(nobody))
    assert all(torch.isfinite(torch.as_tensor(value)) for value in scalars.values())
    names = ("dropped_share", "load_max_over_mean", "load_min_over_mean")
    assert [float(scalars[name]) for name in names] == [0.0] * 3
    validation = ValidationTally()
    validation.add(torch.tensor(1.0), 3, [nobody])
    assert validation.load_max_over_mean == 0.0
    drops = DropTally(num_layers=1)
    drops.add([nobody])
    drops.end_stretch()
    assert (drops.whole_run_L, drops.last_stretch) == ([0.0], 0.0)


def test_the_first_of_two_choices_has_the_largest_gate_whatever_a_bias_selects_first() -> None:
    model = tiny_model(top_k=2, balance=BalanceOptions("sign", rate=0.1))
    model.routers[0].get_buffer("bias_E")[3] = 5.0
    routing = model(torch.arange(8)[None]).routings[0]
    first = first_choice(routing)
    assert torch.equal(first.gate_T, routing.gate_TK.amax(dim=1)) and not bool((first.expert_T == 3).all())


@dataclass
class Filling(RouterOptions):
    """Experts take tokens up to their capacity, so they need one."""

    name: str = "test_filling"

    def problems(self, num_experts: int, balance: BalanceOptions, capacity_factor: float | None) -> Iterator[Problem]:
        yield from super().problems(num_experts, balance, capacity_factor)
        if capacity_factor is None:
            yield "model.capacity_factor", "experts fill a capacity", "for example model.capacity_factor=1.0"

    def experts_per_token(self, num_experts: int, capacity_factor: float | None) -> float:
        return capacity_factor or 1.0


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_experts_that_fill_their_capacity_have_no_empty_slots_and_drop_nothing(factor: float) -> None:
    model = ModelConfig(num_layers=1, d_model=8, d_ff=32, context_length=8, num_experts=4, capacity_factor=factor)
    (layer,) = ledger(model, Filling(), vocab_size=5, batch_size=2).layers
    ffn = 2 * (8 * 32 + 32 * 8)
    assert (layer.useful, layer.padded, layer.dropped) == (factor * ffn, 0.0, 0.0)
    fewer = model.num_params(5, Filling()) - model.num_active_params(5, Filling())
    assert fewer == (4 - factor) * 2 * 8 * 32


def test_with_measured_choices_useful_and_dropped_computation_are_theirs_and_none_is_negative() -> None:
    model = ModelConfig(num_layers=2, d_model=8, d_ff=32, context_length=8, num_experts=4, capacity_factor=1.0)
    ffn = 2 * (8 * 32 + 32 * 8)
    stated = ledger(model, Filling(), vocab_size=5, batch_size=2)
    work = ledger(model, Filling(), vocab_size=5, batch_size=2, selected_L=[0.5, 3.0], kept_L=[0.25, 1.0])
    parts = [(layer.useful / ffn, layer.padded / ffn, layer.dropped / ffn) for layer in work.layers]
    assert parts == [(0.25, 0.75, 0.25), (1.0, 0.0, 2.0)]
    assert work.forward == stated.forward
    dropless = ledger(
        model, Filling(), vocab_size=5, batch_size=2, capacity_factor=None, selected_L=[0.5, 3.0], kept_L=[0.5, 3.0]
    )
    assert [layer.useful / ffn for layer in dropless.layers] == [0.5, 3.0]
    assert all(layer.padded == layer.dropped == 0 for layer in dropless.layers)


def test_a_router_may_refuse_a_key_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES["router"], "test_filling", replace(FAMILIES["router"]["switch"], options=Filling))
    config = Config(router=Filling())
    assert resolve(config).model.capacity_factor == 1.25
    config.model.capacity_factor = None
    with pytest.raises(ConfigError, match=r"^model.capacity_factor=null: experts fill a capacity; for example"):
        resolve(config)


class Wider(SwitchRouter):
    """Has weights beside W_r, of which its options say nothing."""

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.noise_DE = torch.nn.Parameter(torch.zeros(8, 4))


def test_a_router_that_states_another_number_of_weights_than_it_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES["router"], "switch", replace(FAMILIES["router"]["switch"], code=Wider))
    with pytest.raises(ValueError, match=r"num_params of its Options states 32 weights .* it has 64"):
        SwitchLM(ModelConfig(d_model=8, num_heads=2, num_experts=4), vocab_size=5)
