"""Was the router right? Against slow oracles, and a router that is always wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from small_models import copies
from torch import Tensor

from switch_lm.inspection.counterfactual import HELD, counterfactual, judge
from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe
from switch_lm.stats.intervals import Estimate
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=8)
ONE_LETTER = Probe.of(torch.full((400,), 3), context_length=16, num_windows=8)


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
                assert mine.interval() == pytest.approx(theirs.interval(), abs=1e-4), name
    assert result.held[0] != result.own[0] and result.held[0].best_gains.mean > 1e-3


def test_a_router_that_is_always_wrong_is_detected() -> None:
    result = counterfactual(one_useful_expert(chosen=3), ONE_LETTER).held[0]
    assert (result.best.mean, result.rank.mean, result.chance) == (0.0, 4.0, 0.25)
    assert result.best_gains.mean > result.best_gains_on_random.mean > 0.1
    assert result.chosen_gains_on_random.mean < -0.1


def test_a_router_that_is_always_right_is_detected() -> None:
    result = counterfactual(one_useful_expert(chosen=0), ONE_LETTER)
    for one in (result.held[0], result.own[0]):
        assert (one.best.mean, one.rank.mean, one.best_gains.mean) == (1.0, 1.0, 0.0)
        assert one.chosen_gains_on_random.mean == pytest.approx(one.best_gains_on_random.mean) != 0.0
        assert one.chosen_gains_on_random.error is None  # a text of one letter: all windows are equal


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


@pytest.mark.parametrize(("chosen", "sign"), [(0, 1.0), (3, -1.0)])
def test_a_router_that_is_better_or_worse_than_a_random_one_is_detected(chosen: int, sign: float) -> None:
    """Expert 0 is better than the mean of the four by 1.5 nats, expert 3 worse, in windows with an effect of 1 nat."""
    draw = torch.Generator().manual_seed(0)
    nll_EBN = torch.arange(4.0)[:, None, None] + torch.randn(4, 16, 10, generator=draw)
    nll_EBN[chosen] += torch.randn(16, 1, generator=draw)
    every = {"chosen_BN": torch.full((16, 10), chosen), "open_EBN": torch.ones(4, 16, 10, dtype=torch.bool)}
    gains = judge(nll_EBN, **every, gate=HELD).chosen_gains_on_random
    assert gains.resolved(1) and sign * gains.mean > 0.5


def test_a_router_that_chooses_at_random_is_no_better_than_a_random_one() -> None:
    draw, judgements = torch.Generator().manual_seed(0), []
    for _ in range(40):
        nll_EBN, chosen_BN = torch.rand(4, 30, 10, generator=draw), torch.randint(4, (30, 10), generator=draw)
        judgements.append(
            judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=torch.ones(4, 30, 10, dtype=torch.bool), gate=HELD)
        )
    assert sum(one.chosen_gains_on_random.resolved() for one in judgements) <= 6
    ends = [interval for one in judgements if (interval := one.best.interval())]
    assert sum(low <= 0.25 <= high for low, high in ends) >= 34


def test_losses_are_judged_by_hand() -> None:
    nll_EBN = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1).expand(3, 2, 1)
    chosen_BN = torch.tensor([[1], [1]])
    result = judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=torch.ones_like(nll_EBN, dtype=torch.bool), gate=HELD)
    assert (result.best.mean, result.rank.mean, result.best_gains.mean) == (0.0, 2.0, 1.0)
    assert result.chosen_gains_on_random.mean == pytest.approx(1 / 3)
    closed_EBN = torch.tensor([False, True, True]).view(3, 1, 1).expand(3, 2, 1)
    closed = judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=closed_EBN, gate=HELD)
    assert (closed.num_experts, closed.best.mean, closed.rank.mean, closed.best_gains.mean) == (2, 1.0, 1.0, 0.0)
    one_EBN = torch.tensor([[True], [False]]).expand(3, 2, 1)  # no expert takes the other token
    one, nobody = (judge(nll_EBN, chosen_BN=chosen_BN, open_EBN=x, gate=HELD) for x in (one_EBN, one_EBN & False))
    assert (one.num_experts, one.best_gains, one.without) == (3.0, Estimate(1.0, 1), 0.5)
    assert nobody.without == 1.0


@pytest.mark.parametrize("renormalize", [False, True])
def test_with_two_choices_the_second_one_stays(renormalize: bool) -> None:
    model = tiny_model(len(VOCABULARY), top_k=2, renormalize_gates=renormalize)
    result = counterfactual(model, PROBE, positions=3)
    assert {one.num_experts for one in result.held} == {3}
    assert all(1.0 <= one.rank.mean <= 3.0 and one.best_gains.mean >= 0.0 for one in (*result.held, *result.own))
