"""Do experts differ? Copies, swaps, experts that are off, and what the loss is worth without them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from small_models import copies
from torch import Tensor

from switch_lm.inspection.ablation import Ablation, Costliest, ablation, costliest, similarities
from switch_lm.inspection.counterfactual import counterfactual
from switch_lm.measure.scoring import whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe, recorded
from switch_lm.stats.clusters import mean
from switch_lm.stats.intervals import Estimate
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=8)


def states(model: SwitchLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("measure", [counterfactual, ablation, similarities], ids=lambda f: f.__name__)
def test_the_model_is_as_it_was(measure: Any) -> None:
    model = tiny_model(len(VOCABULARY))
    before, state = states(model), torch.get_rng_state()
    measure(model, PROBE)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("measure", [counterfactual, ablation, similarities], ids=lambda f: f.__name__)
def test_a_dense_model_is_refused(measure: Any) -> None:
    with pytest.raises(ValueError, match="a dense model routes nothing"):
        measure(tiny_model(len(VOCABULARY), switch_every=0), PROBE)


def test_a_model_with_a_capacity_in_evaluation_is_read_without_it() -> None:
    limits: dict[str, Any] = {"overflow": "passthrough", "eval_capacity_factor": 0.5}
    limited, free = (tiny_model(len(VOCABULARY), **changes) for changes in (limits, {}))
    assert counterfactual(limited, PROBE, positions=2) == counterfactual(free, PROBE, positions=2)
    assert means(ablation(limited, PROBE)) == means(ablation(free, PROBE))


def test_of_more_than_64_experts_64_are_changed_and_tried() -> None:
    model = tiny_model(len(VOCABULARY), num_experts=70, num_layers=1)
    model.switch_layers[0].experts.w_in_EDF.data[:] = model.switch_layers[0].experts.w_in_EDF.data[:1]
    model.switch_layers[0].experts.w_out_EFD.data[:] = model.switch_layers[0].experts.w_out_EFD.data[:1]
    (layer,), judged = ablation(model, PROBE).layers, counterfactual(model, PROBE, positions=2)
    shares, shown = layer.similarity.share_E, layer.similarity.experts
    assert len(shares) == 70 and sum(shares) == pytest.approx(1.0)
    assert len(layer.off) == len(set(shown)) == 64
    assert min(shares[e] for e in shown) >= max(shares[e] for e in range(70) if e not in shown)
    (held,) = judged.held
    assert 64.0 <= held.num_experts <= 65.0 and held.best.mean == pytest.approx(held.chance)  # all are alike
    assert judged.drawn_from == 70


# --- Ablation


def means(result: Ablation) -> list[float]:
    return [one.mean for layer in result.layers for one in (*layer.off, *layer.swapped.values(), layer.averaged)]


def loss(model: SwitchLM) -> float:
    return whole(model, PROBE.ids_BS, PROBE.target_BS, capacity_factor=None).double().mean().item()


@pytest.mark.parametrize("changes", [{}, {"num_layers": 4, "switch_every": 2}, {"position": "learned"}], ids=str)
def test_swapping_two_experts_is_swapping_their_columns_in_the_router(changes: dict[str, Any]) -> None:
    model = tiny_model(len(VOCABULARY), **changes)
    result = ablation(model, PROBE)
    assert result.loss == pytest.approx(loss(model)) and len(result.layers[0].swapped) == 6
    for number, layer in enumerate(result.layers):
        for (i, j), cost in layer.swapped.items():
            other = deepcopy(model)
            w_DE = other.router_parameters()[number].data
            w_DE[:, [i, j]] = w_DE[:, [j, i]].clone()
            assert cost.mean == pytest.approx(loss(other) - loss(model), abs=1e-5)
    assert max(map(abs, means(result))) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"num_layers": 4, "switch_every": 2}, {"position": "none"}], ids=str)
def test_reading_from_a_layer_on_gives_what_the_whole_model_gives(changes: dict[str, Any]) -> None:
    model = tiny_model(len(VOCABULARY), **changes)
    nll_from = recorded(model, PROBE)
    for number, layer in enumerate(model.switch_layers):
        layer.experts.w_out_EFD.data.mul_(2.0)
        expected_BS = whole(model, PROBE.ids_BS, PROBE.target_BS, capacity_factor=None)
        assert torch.allclose(nll_from(number), expected_BS, atol=1e-5)
        layer.experts.w_out_EFD.data.mul_(0.5)
        assert not torch.allclose(nll_from(number), expected_BS, atol=1e-3)


@pytest.mark.parametrize("expert", [0, 3])
def test_an_expert_that_is_off_gives_its_tokens_nothing(expert: int) -> None:
    model = tiny_model(len(VOCABULARY))

    def silence(module: Any, inputs: Any, output: tuple[Tensor, Any]) -> Any:
        return output[0] * (output[1].expert_TK[:, 0] != expert).view(*output[0].shape[:2], 1), output[1]

    cost = ablation(model, PROBE).layers[1].off[expert]
    before = loss(model)
    model.switch_layers[1].register_forward_hook(silence)
    assert cost.mean == pytest.approx(loss(model) - before, abs=1e-5) and abs(cost.mean) > 1e-4


def test_an_expert_without_tokens_costs_nothing_to_switch_off() -> None:
    model = tiny_model(len(VOCABULARY))
    w_DE = model.router_parameters()[0].data
    w_DE[:, 2] = w_DE[:, 1]  # among equal experts the first is selected
    layer = ablation(model, PROBE).layers[0]
    assert layer.similarity.share_E[2] == 0.0 and layer.off[2].mean == 0.0
    assert layer.off[2].error is None and not layer.off[2].resolved()


def test_an_expert_that_gives_nothing_costs_nothing_and_has_no_interval_of_width_zero() -> None:
    model = tiny_model(len(VOCABULARY))
    for layer in model.switch_layers:
        layer.experts.w_out_EFD.data[2] = 0.0
    result = ablation(model, PROBE)
    for one in result.layers:
        assert one.off[2] == Estimate(0.0, 8) and one.similarity.share_E[2] > 0.0


def test_the_costliest_expert_is_chosen_on_every_other_window_and_estimated_on_those_between() -> None:
    change_BE = torch.zeros(16, 3).double()
    change_BE[::2, 1] = 5.0
    change_BE[1::2] = torch.arange(8.0).double()[:, None] * torch.tensor([3.0, 1.0, 2.0])
    result = costliest(change_BE)
    assert result == Costliest(1, mean(torch.arange(8.0)[:, None])) and result.cost.mean == 3.5


def test_one_window_does_not_both_choose_the_costliest_expert_and_estimate_it() -> None:
    result = ablation(tiny_model(len(VOCABULARY)), PROBE.smaller(1))
    assert [layer.costliest for layer in result.layers] == [None, None]
    assert result.comparisons == 2 * (4 + 6 + 3)


def test_every_interval_of_the_experts_is_counted() -> None:
    result = ablation(tiny_model(len(VOCABULARY)), PROBE)
    assert result.comparisons == 2 * (4 + 6 + 4)  # off, swapped; the costliest, swapped on average, averaged, all off
    assert (
        counterfactual(tiny_model(len(VOCABULARY)), PROBE, positions=2).comparisons == 2 * 2
    )  # of the gains on a random expert


def test_copies_can_be_swapped_and_averaged_for_nothing() -> None:
    layers = ablation(copies(), PROBE).layers
    for layer in layers:
        assert {cost.mean for cost in layer.swapped.values()} == {0.0}
        assert layer.averaged.mean == pytest.approx(0.0, abs=1e-6)
        assert layer.similarity.between == pytest.approx(1.0, abs=1e-5)
        assert layer.similarity.chance < 0.95
        assert not any(cost.resolved() for cost in layer.swapped.values())
        low, high = layer.averaged.interval(100) or (0.0, 0.0)
        assert low < 0.0 < high < 1e-6
    assert max(cost.mean for cost in layers[0].off) > 1e-4  # though each has its tokens


def test_copies_that_keep_their_hidden_units_in_another_order_are_still_copies() -> None:
    model, draw = copies(), torch.Generator().manual_seed(0)
    for layer in model.switch_layers:
        for w_in_DF, w_out_FD in zip(layer.experts.w_in_EDF.data, layer.experts.w_out_EFD.data, strict=True):
            order_F = torch.randperm(len(w_out_FD), generator=draw)
            w_in_DF[:], w_out_FD[:] = w_in_DF[:, order_F], w_out_FD[order_F]
    for result in ablation(model, PROBE).layers:
        assert result.averaged.mean == pytest.approx(0.0, abs=1e-6)
        assert max(abs(cost.mean) for cost in result.swapped.values()) < 1e-6
        assert result.all_off.mean != pytest.approx(0.0, abs=1e-4)


def test_averaging_opposite_experts_leaves_nothing() -> None:
    """Experts 0 and 1 undo each other, as 2 and 3 do: their mean is a layer that is off."""
    model = copies()
    experts = model.switch_layers[1].experts
    experts.w_out_EFD.data[[1, 3]] *= -1.0
    layer, before = ablation(model, PROBE).layers[1], loss(model)
    experts.w_out_EFD.data.zero_()
    assert layer.averaged.mean == pytest.approx(loss(model) - before, abs=1e-5)
    expected = [[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]] * 2
    assert torch.allclose(layer.similarity.same_EE, torch.tensor(expected).double(), atol=1e-5)


def test_unrelated_experts_are_no_more_alike_than_by_chance() -> None:
    model = tiny_model(len(VOCABULARY), d_model=64, num_experts=8)
    for one in similarities(model, PROBE):
        assert one.between is not None and abs(one.between - one.chance) < 0.05
        assert torch.allclose(one.same_EE.diag(), torch.ones(8).double(), atol=1e-5)


def test_the_swaps_of_many_experts_are_drawn_and_the_same_each_time() -> None:
    model = tiny_model(len(VOCABULARY), num_experts=8)
    swaps = [ablation(model, PROBE, num_windows=2, pairs=5).layers[0].swapped for _ in range(2)]
    assert len(swaps[0]) == 5 and swaps[0] == swaps[1]


def test_a_single_expert_is_compared_with_none() -> None:
    model = tiny_model(len(VOCABULARY), num_experts=1)
    layer = ablation(model, PROBE).layers[0]
    assert (layer.swapped, layer.any_swapped, layer.similarity.between) == ({}, None, None)
    assert layer.averaged.mean == pytest.approx(0.0, abs=1e-6)
    judged = counterfactual(model, PROBE, positions=2)
    only = judged.held[0]
    assert (only.best.mean, only.rank.mean, only.best_gains.mean) == (1.0, 1.0, 0.0)
