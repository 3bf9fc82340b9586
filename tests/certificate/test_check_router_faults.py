"""Planted faults that only a router's oracle or its promise shows: most of them look healthy in every statistic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model
from small_models import family
from test_check import subject_of, verdicts
from test_check_faults import Break, changed, load_after_dropping, select_the_worst, softmax_after_top_k
from torch import Tensor

from switch_lm.certificate.finding import Verdict
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers import base, queueing, uniform
from switch_lm.routers.cutoffs import CutoffRouter
from switch_lm.routers.hashing import HashRouter
from switch_lm.routers.options import BalanceOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.sigmoid import SigmoidRouter
from switch_lm.routers.switch import SwitchRouter


def select_the_second_best(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """Once in a while: of one token in every eight."""
    real = SwitchRouter.select

    def select(self: SwitchRouter, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        expert_TK = real(self, logits_TE, probs_TE).clone()
        expert_TK[::8, -1] = probs_TE[::8].topk(self.options.top_k + 1, dim=-1).indices[:, -1]
        return expert_TK

    patch.setattr(SwitchRouter, "select", select)


def gates_of_another_expert(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = base.Router.token_choice

    def token_choice(self: base.Router, expert_TK: Tensor, scores_TE: Tensor, **options: Any) -> Routing:
        other_TE = scores_TE.roll(1, dims=1)
        return replace(
            real(self, expert_TK, scores_TE, **options), gate_N=self.gates(other_TE.gather(1, expert_TK)).flatten()
        )

    patch.setattr(base.Router, "token_choice", token_choice)


def a_bias_that_is_added_to_the_gate(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """With gradients that are right, since the bias has none."""
    for router in model.routers:
        router.get_buffer("bias_E").copy_(torch.tensor([0.3, -0.3, 0.0, 0.1]))
    changed(
        patch,
        lambda result: replace(result, gate_N=result.gate_N + model.routers[0].get_buffer("bias_E")[result.assigned_N]),
    )


def gates_that_are_rescaled(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    changed(patch, lambda result: replace(result, gate_N=1.01 * result.gate_N))


def slots_in_reverse_order(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """Still as many for each expert: only who has one is wrong."""
    real = queueing.queue_slots

    def reverse(expert_GN: Tensor, num_experts: int) -> queueing.Queue:
        queue = real(expert_GN.flip(1), num_experts)
        return queueing.Queue(queue.slot_GN.flip(1), queue.load_GE)

    patch.setattr(base, "queue_slots", reverse)
    patch.setattr(queueing, "queue_slots", reverse)


def a_bias_that_selects_nothing(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for router in model.routers:
        router.get_buffer("bias_E").copy_(torch.tensor([0.3, -0.3, 0.0, 0.1]))
    patch.setattr(base.Router, "biased", lambda self, score_TE: score_TE)


def probabilities_with_a_temperature(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """Each token goes to the same expert, with another gate."""
    real = SwitchRouter.assign
    patch.setattr(
        SwitchRouter, "assign", lambda self, x_TD, logits_TE, **options: real(self, x_TD, 0.9 * logits_TE, **options)
    )


def passing_on_what_should_be_dropped(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    changed(patch, lambda result: replace(result, passes_dropped=True))


def a_capacity_that_the_router_ignores(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = base.Router.token_choice

    def token_choice(self: base.Router, *args: Any, **options: Any) -> Routing:
        return real(self, *args, **options | {"capacity": None})

    patch.setattr(base.Router, "token_choice", token_choice)


def one_expert_too_many(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(
        SwitchRouter,
        "select",
        lambda self, logits_TE, probs_TE: probs_TE.topk(self.options.top_k + 1, dim=-1).indices,
    )


def promised(**answers: Any) -> Break:
    """A router that promises what it does not keep."""

    def fault(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
        real = SwitchRouter.promise
        patch.setattr(SwitchRouter, "promise", lambda self, **when: replace(real(self, **when), **answers))

    fault.__name__ = "promises_" + "_".join(answers)
    return fault


def other_options_than_configured(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for router in model.routers:
        router.options = replace(router.options, capacity_group="batch")


def gates_that_are_not_renormalised(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(SigmoidRouter, "gates", lambda self, score_TK: score_TK)


def the_expert_of_the_next_character(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = HashRouter.assign
    patch.setattr(
        HashRouter, "assign", lambda self, *x, ids_T, **options: real(self, *x, ids_T=ids_T.roll(-1), **options)
    )


def a_frozen_router_that_is_trained(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for weight in model.router_parameters():
        weight.requires_grad_()


def drawing_in_evaluation_too(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(uniform, "mixed", lambda ids_T, position_T: torch.randint(99, ids_T.shape))


def cut_offs_of_the_batch(name: str) -> Break:
    def fault(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
        real = CutoffRouter.above
        patch.setattr(
            CutoffRouter, "above", lambda self, p_TE, cutoff_E, **others: real(self, p_TE, p_TE.mean(dim=0), **others)
        )

    fault.__name__ = f"cut_offs_of_the_batch_{name}"
    return fault


def cut_offs_that_lag_behind(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for router in model.routers:
        router.get_buffer("steps").fill_(9)
        router.get_buffer("cutoff_E").zero_()


def drawing_one_of_two(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """The first as often as it should."""
    real = torch.randint
    patch.setattr(torch, "randint", lambda high, *size, **how: real(high, *size, **how).clamp(max=1))


BY_BIAS: dict[str, Any] = {"balance": BalanceOptions("sign", rate=0.1)}
FAULTS: dict[Break, tuple[set[str], dict[str, Any]]] = {  # what must fail, and the options of the model
    select_the_second_best: ({"selection"}, {}),
    gates_of_another_expert: ({"gates", "layer's output"}, {}),
    gates_that_are_rescaled: ({"gates", "layer's output", "layer's gradients"}, {}),
    a_bias_that_is_added_to_the_gate: ({"gates", "layer's output"}, BY_BIAS),
    a_bias_that_selects_nothing: ({"selection"}, BY_BIAS),
    slots_in_reverse_order: ({"slots", "own future, training"}, {}),
    probabilities_with_a_temperature: ({"gates", "layer's output", "layer's gradients", "balance loss"}, {}),
    passing_on_what_should_be_dropped: ({"layer's output"}, {}),
    a_capacity_that_the_router_ignores: ({"slots"}, {}),
    other_options_than_configured: ({"slots"}, {"capacity_group": "sequence"}),
    one_expert_too_many: ({"promise", "selection"}, {}),
    promised(sees_future=False): ({"own future, training"}, {"drop_order": "probability"}),
    promised(depends_on_rows=False): ({"other rows, training"}, {}),
    promised(experts_per_token=1): ({"promise"}, {"top_k": 2}),
    promised(reroutes=False): ({"promise"}, {"overflow": "reroute"}),
    promised(draws=False): ({"promise", "selection"}, {"selection": "sample"}),
    promised(draws=True): ({"selection"}, {}),
    promised(shuffles=False): ({"promise"}, {"drop_order": "random"}),
    promised(learns=False): ({"promise"}, {}),
    gates_that_are_not_renormalised: ({"gates", "layer's output"}, {"router": family("sigmoid", top_k=2)}),
    the_expert_of_the_next_character: ({"own future, training", "cache", "selection"}, {"router": family("hash")}),
    a_frozen_router_that_is_trained: ({"promise"}, {"router": family("frozen")}),
    drawing_in_evaluation_too: ({"no randomness, evaluation", "promise", "cache"}, {"router": family("uniform")}),
    drawing_one_of_two: ({"selection"}, {"router": family("uniform")}),
    cut_offs_that_lag_behind: ({"every expert used"}, {"router": family("threshold", warmup_steps=0)}),
    cut_offs_of_the_batch("expert_choice"): ({"own future, evaluation", "cache"}, {"router": family("expert_choice")}),
    cut_offs_of_the_batch("threshold"): ({"own future, training"}, {"router": family("threshold", warmup_steps=0)}),
}
OF_SWITCH_AND_TOPK: dict[Break, set[str]] = {
    softmax_after_top_k: {"gates", "layer's output"},
    select_the_worst: {"selection"},
    load_after_dropping: {"choices conserved"},
} | {fault: wanted for fault, (wanted, options) in FAULTS.items() if not options and "promises" not in fault.__name__}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails(fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, options = FAULTS[fault]
    model = tiny_model(**options)
    fault(monkeypatch, model)
    result = verdicts(subject_of(model))
    assert {check for check in wanted if result[check] != Verdict.FAIL} == set()


@pytest.mark.parametrize("fault", OF_SWITCH_AND_TOPK, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails_with_two_experts_per_token_too(fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(top_k=2)
    fault(monkeypatch, model)
    result = verdicts(subject_of(model))
    assert {check for check in OF_SWITCH_AND_TOPK[fault] if result[check] != Verdict.FAIL} == set()
