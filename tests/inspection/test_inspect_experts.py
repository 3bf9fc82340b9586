"""Was the router right, and do experts differ? Against slow oracles, a router that is always wrong, and copies."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from torch import Tensor

from switch_lm.inspection.ablation import Ablation, ablation, similarities
from switch_lm.inspection.counterfactual import HELD, counterfactual, judge
from switch_lm.measure.scoring import negative_log_likelihood, whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe, recorded
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=8)
ONE_LETTER = Probe.of(torch.full((400,), 3), context_length=16, num_windows=8)


def copies(**changes: Any) -> SwitchLM:
    """All experts of a layer are the first one."""
    model = tiny_model(len(VOCABULARY), **changes)
    for layer in model.switch_layers:
        for weight in layer.experts.parameters():
            weight.data[:] = weight.data[0].clone()
    return model


def one_useful_expert(chosen: int) -> SwitchLM:
    """For a text of one letter: expert 0 predicts it, 1 and 2 contribute nothing, 3 makes it less probable."""
    model = tiny_model(len(VOCABULARY), num_layers=1)
    block: Any = model.blocks[0]
    block.attention.out.weight.data.zero_()
    layer, letter_D = model.switch_layers[0], model.embedding.weight.data[3]
    with torch.no_grad():
        h_D = block.norm_ffn(letter_D)
        layer.experts.w_in_EDF[:] = torch.nn.functional.normalize(h_D, dim=0)[None, :, None]
        layer.experts.w_out_EFD[:] = model.head.weight[3] * torch.tensor([1.0, 0.0, 0.0, -1.0])[:, None, None]
        (w_DE,) = model.router_parameters()
        w_DE.zero_()
        w_DE[:, chosen] = 0.05 * h_D
    return model


# --- Counterfactual


def slow(model: SwitchLM, layer: int, gate: str, *, positions: list[int]) -> Any:
    """One window, position and expert at a time: the text up to there, and at its end another expert's output."""
    chosen_layer, kinds = model.switch_layers[layer], (len(PROBE.ids_BS), len(positions))
    nll_EBN = torch.zeros(chosen_layer.num_experts, *kinds)
    chosen_BN = torch.zeros(kinds, dtype=torch.long)

    def forced(module: Any, inputs: tuple[Tensor], output: tuple[Tensor, Any]) -> Any:
        y_BSD, routing = output[0].clone(), output[1]
        w_in_DF, w_out_FD = module.experts.w_in_EDF[expert], module.experts.w_out_EFD[expert]
        probs_E, first = routing.probs_TE[-1], int(routing.expert_TK[-1, 0])
        chosen_BN[b, n] = first
        y_BSD[0, -1] = module.experts.activation(inputs[0][0, -1] @ w_in_DF) @ w_out_FD
        y_BSD[0, -1] *= probs_E[first if gate == HELD else expert]
        return y_BSD, routing

    hook = chosen_layer.register_forward_hook(forced)
    for b in range(kinds[0]):
        for n, t in enumerate(positions):
            for expert in range(chosen_layer.num_experts):
                logits = model(PROBE.ids_BS[b : b + 1, : t + 1], capacity_factor=None).logits
                nll_EBN[expert, b, n] = negative_log_likelihood(logits[:, -1:], PROBE.target_BS[b, t].view(1, 1))
    hook.remove()
    return judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=torch.ones_like(nll_EBN, dtype=torch.bool), gate=gate)


@pytest.mark.parametrize("changes", [{}, {"position": "learned", "num_layers": 4, "switch_every": 2}], ids=str)
@torch.no_grad()
def test_every_expert_is_scored_as_a_slow_loop_scores_it(changes: dict[str, Any]) -> None:
    model = tiny_model(len(VOCABULARY), **changes)
    result = counterfactual(model, PROBE, positions=2)
    assert result.num_tokens == 16
    for layer in range(2):
        for one in (result.held[layer], result.own[layer]):
            expected = slow(model, layer, one.gate, positions=[4, 12])
            for name in ("best", "rank", "best_gains", "best_gains_on_random", "chosen_gains_on_random"):
                mine, theirs = getattr(one, name), getattr(expected, name)
                assert mine.mean == pytest.approx(theirs.mean, abs=1e-5), name
                assert mine.low == pytest.approx(theirs.low, abs=1e-4), name
    assert result.held[0] != result.own[0] and result.held[0].best_gains.mean > 1e-3


def test_a_router_that_is_always_wrong_is_detected() -> None:
    result = counterfactual(one_useful_expert(chosen=3), ONE_LETTER).held[0]
    assert (result.best.mean, result.rank.mean, result.chance) == (0.0, 4.0, 0.25)
    assert result.best_gains.mean > result.best_gains_on_random.mean > 0.1
    assert result.chosen_gains_on_random.mean < -0.1 and result.chosen_gains_on_random.resolved
    assert "worse than a random one" in result.findings()[0]
    assert "was the best of 3 for" in replace(result, num_experts=3.0).findings()[0]
    assert "was the best of 3.5 (on average) for" in replace(result, num_experts=3.51042).findings()[0]


def test_a_router_that_is_always_right_is_detected() -> None:
    result = counterfactual(one_useful_expert(chosen=0), ONE_LETTER)
    for one in (result.held[0], result.own[0]):
        assert (one.best.mean, one.rank.mean, one.best_gains.mean) == (1.0, 1.0, 0.0)
        assert one.chosen_gains_on_random.mean == pytest.approx(one.best_gains_on_random.mean) != 0.0
        assert "better than a random one" in one.findings()[0]


def test_two_experts_that_contribute_nothing_share_their_rank() -> None:
    result = counterfactual(one_useful_expert(chosen=1), ONE_LETTER).held[0]
    assert (result.best.mean, result.rank.mean) == (0.0, 2.5)


def test_between_copies_there_is_nothing_to_gain() -> None:
    result = counterfactual(copies(), PROBE)
    for one in result.held:
        assert (one.best.mean, one.rank.mean) == (0.25, 2.5)  # as by chance
        assert one.best_gains.mean == pytest.approx(0.0, abs=1e-5)
        assert one.chosen_gains_on_random.mean == pytest.approx(0.0, abs=1e-5)
    assert all(one.best_gains_on_random.mean > 0 for one in result.own)  # their gates still differ


def test_a_router_that_chooses_at_random_is_no_better_than_a_random_one() -> None:
    draw, judgements = torch.Generator().manual_seed(0), []
    for _ in range(40):
        nll_EBN, chosen_BN = torch.rand(4, 30, 10, generator=draw), torch.randint(4, (30, 10), generator=draw)
        judgements.append(
            judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=torch.ones(4, 30, 10, dtype=torch.bool), gate=HELD)
        )
    assert sum(one.chosen_gains_on_random.resolved for one in judgements) <= 6
    assert sum(one.best.low <= 0.25 <= one.best.high for one in judgements) >= 34  # type: ignore[operator]
    quiet = next(one for one in judgements if not one.chosen_gains_on_random.resolved)
    assert "not better or worse than a random one by any visible amount" in quiet.findings()[0]


def test_losses_are_judged_by_hand() -> None:
    nll_EBN = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1).expand(3, 2, 1)
    chosen_BN = torch.tensor([[1], [1]])
    result = judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=torch.ones_like(nll_EBN, dtype=torch.bool), gate=HELD)
    assert (result.best.mean, result.rank.mean, result.best_gains.mean) == (0.0, 2.0, 1.0)
    assert result.chosen_gains_on_random.mean == pytest.approx(1 / 3)
    closed_EBN = torch.tensor([False, True, True]).view(3, 1, 1).expand(3, 2, 1)
    closed = judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=closed_EBN, gate=HELD)
    assert (closed.num_experts, closed.best.mean, closed.rank.mean, closed.best_gains.mean) == (2, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("renormalize", [False, True])
def test_with_two_choices_the_second_one_stays(renormalize: bool) -> None:
    model = tiny_model(len(VOCABULARY), top_k=2, renormalize_gates=renormalize)
    result = counterfactual(model, PROBE, positions=3)
    assert {one.num_experts for one in result.held} == {3}
    assert all(1.0 <= one.rank.mean <= 3.0 and one.best_gains.mean >= 0.0 for one in (*result.held, *result.own))


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
    assert costs(ablation(limited, PROBE)) == costs(ablation(free, PROBE))


# --- Ablation


def costs(result: Ablation) -> list[float]:
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
    assert max(map(abs, costs(result))) > 1e-3


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
    assert any("without a token of the probe: expert 2" in text for text in layer.findings())


def test_copies_can_be_swapped_and_averaged_for_nothing() -> None:
    layers = ablation(copies(), PROBE).layers
    for layer in layers:
        assert {cost.mean for cost in layer.swapped.values()} == {0.0}
        assert layer.averaged.mean == pytest.approx(0.0, abs=1e-6)
        assert layer.similarity.between == pytest.approx(1.0, abs=1e-5)
        assert layer.similarity.chance < 0.95
        assert "no visible cost for 6 of 6 pairs" in layer.findings()[-3]
        assert "no visible loss" in layer.findings()[-2]
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
    assert (layer.swapped, layer.similarity.between, len(layer.findings())) == ({}, None, 1)
    assert layer.averaged.mean == pytest.approx(0.0, abs=1e-6)
    only = counterfactual(model, PROBE, positions=2).held[0]
    assert (only.best.mean, only.rank.mean, only.best_gains.mean) == (1.0, 1.0, 0.0)
