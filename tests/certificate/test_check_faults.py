"""Planted faults of mixture-of-experts code, each with the checks of the certificate that must fail for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_model
from test_check import subject_of, verdicts
from torch import Tensor

from switch_lm.certificate import leaks, scores
from switch_lm.certificate.finding import Verdict
from switch_lm.model import attention, experts, switch
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers import base, noise, queueing
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter

Break = Callable[[pytest.MonkeyPatch, SwitchLM], None]


def changed(patch: pytest.MonkeyPatch, change: Callable[[Routing], Routing]) -> None:
    """Whatever routers decide is changed."""
    real = base.Router.forward
    patch.setattr(base.Router, "forward", lambda self, x_TD, **options: change(real(self, x_TD, **options)))


def softmax_after_top_k(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(SwitchRouter, "gates", lambda self, score_TK: score_TK.log().softmax(dim=-1))


def capacity_rounded_down(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(
        switch, "expert_capacity", lambda T, E, factor: None if factor is None else max(1, int(factor * T / E))
    )


def slots_counted_inclusively(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = queueing.queue_slots

    def one_later(expert_GN: Tensor, num_experts: int) -> Any:
        queue = real(expert_GN, num_experts)
        return queueing.Queue(queue.slot_GN + 1, queue.load_GE)

    patch.setattr(base, "queue_slots", one_later)
    patch.setattr(queueing, "queue_slots", one_later)


def load_after_dropping(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    changed(patch, lambda result: replace(result, load_E=result.kept_E))


def last_come_first_served(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setitem(
        queueing.DROP_ORDERS,
        "position",
        lambda p_GtE, training: torch.ones_like(p_GtE[..., 0]).cumsum(1).argsort(1).flip(1),
    )


def attention_without_a_mask(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    def sees_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1) @ v

    patch.setattr(attention, "causal_attention", sees_all)


def dropout_always(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(noise.Dropout, "forward", lambda self, x: torch.nn.functional.dropout(x, 0.1, training=True))


def router_in_bf16(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    """Autocast stays on, which undoes the cast to float32."""
    stays_on = {"autocast": lambda *_, **__: contextlib.nullcontext()}
    patch.setattr(base, "torch", SimpleNamespace(**vars(torch) | stays_on))


def jitter_in_place(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(base, "jitter", lambda x_TD, epsilon: x_TD.mul_(1 + epsilon * torch.rand_like(x_TD)))


def copies(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.experts.w_in_EDF.data[3] = layer.experts.w_in_EDF.data[1]
        layer.experts.w_out_EFD.data[3] = layer.experts.w_out_EFD.data[1]


def copies_among_many(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    copies(patch, model)


def an_idle_expert(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    w_DE = model.router_parameters()[1].data
    w_DE[:, 3] = w_DE[:, 1]  # among equal experts the first is selected


def drops_in_evaluation(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.eval_capacity_factor = 0.5


def select_the_worst(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    def select(self: SwitchRouter, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        return (-probs_TE).topk(self.options.top_k, dim=-1).indices

    patch.setattr(SwitchRouter, "select", select)


def an_expert_twice(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = SwitchRouter.select
    patch.setattr(SwitchRouter, "select", lambda self, *scores: real(self, *scores)[:, :1].expand(-1, 2).contiguous())


def a_drop_order_not_followed(order: str, instead: str) -> Break:
    def fault(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
        patch.setitem(queueing.DROP_ORDERS, order, queueing.DROP_ORDERS[instead])

    fault.__name__ = f"{order}_is_{instead}"
    return fault


def rerouting_that_does_nothing(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    def stay(expert_GN: Tensor, probs_GNE: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        return expert_GN, queueing.queue_slots(expert_GN, probs_GNE.shape[-1]).slot_GN

    patch.setattr(queueing, "_reroute", stay)


def a_router_that_is_not_trained(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(base._NarrowProduct, "backward", lambda ctx, g: (g @ ctx.saved_tensors[1].T, torch.randn(16, 4)))


def experts_that_are_not_trained(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = experts.Experts.cached
    patch.setattr(experts.Experts, "cached", lambda self, x_ND, *rows: real(self, x_ND, *rows).detach() + 0 * x_ND)


def bf16_with_a_gradient(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = base._NarrowProduct.forward

    def rounded(ctx: Any, x_TD: Tensor, w_DE: Tensor) -> Tensor:
        return real(ctx, x_TD, w_DE).bfloat16().float()

    patch.setattr(base._NarrowProduct, "forward", rounded)


def a_dead_balance_loss(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(Routing, "mean_prob_E", property(lambda self: self.probs_TE.detach().mean(dim=0)))


def balance_of_kept_choices_only(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(Routing, "mean_prob_E", property(lambda self: self.probs_TE[self.kept_TK[:, 0]].mean(dim=0)))


def always_the_first_expert_when_generating(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = experts.Experts.one_token
    patch.setattr(experts.Experts, "one_token", lambda self, x_1D, expert_11: real(self, x_1D, 0 * expert_11))


def gates_of_one_in_evaluation(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = SwitchRouter.gates
    patch.setattr(
        SwitchRouter, "gates", lambda self, p_TK: real(self, p_TK) if torch.is_grad_enabled() else 0 * p_TK + 1
    )


def sees_all_in_training(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = attention.Attention.forward

    def forward(self: attention.Attention, x_BSD: Tensor, **options: Any) -> Tensor:
        seen_BSD = x_BSD + 0.1 * x_BSD.flip(1) if self.training else x_BSD
        return real(self, seen_BSD, **options)

    patch.setattr(attention.Attention, "forward", forward)


def another_capacity_than_configured(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.capacity_factor = None


def a_rows_capacity_is_the_batchs(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = base.Router.forward

    def forward(self: base.Router, x_TD: Tensor, *, capacity: int | None, num_groups: int, **others: Any) -> Routing:
        capacity = None if capacity is None else capacity * num_groups
        return real(self, x_TD, capacity=capacity, num_groups=1, **others)

    patch.setattr(base.Router, "forward", forward)


def a_nan(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    model.switch_layers[0].experts.w_in_EDF.data[0, 0, 0] = torch.nan


def training_scores_better(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = SwitchLM.forward

    def forward(self: SwitchLM, ids_BS: Tensor, **options: Any) -> Any:
        output = real(self, ids_BS, **options)
        return replace(output, logits=output.logits * (1.1 if self.training else 1.0))

    patch.setattr(SwitchLM, "forward", forward)


EVERY_FUTURE = {"own future, training", "own future, evaluation"}
FAULTS: dict[Break, tuple[set[str], dict[str, Any]]] = {  # what must fail, and the options of the model
    softmax_after_top_k: ({"router learns", "gates", "layer's output"}, {}),
    capacity_rounded_down: ({"capacity"}, {}),
    slots_counted_inclusively: ({"choices conserved", "slots"}, {}),
    load_after_dropping: ({"choices conserved"}, {}),
    last_come_first_served: ({"own future, training", "slots"}, {}),
    attention_without_a_mask: (EVERY_FUTURE | {"cache", "loss gap, evaluation"}, {}),
    dropout_always: ({"no randomness, evaluation"}, {}),
    router_in_bf16: ({"float32 router"}, {}),
    bf16_with_a_gradient: ({"float32 router", "layer's gradients"}, {}),
    jitter_in_place: ({"layer's output"}, {"jitter": 0.1}),
    copies: ({"experts differ"}, {}),
    copies_among_many: ({"experts differ"}, {"num_experts": 70}),
    an_idle_expert: ({"every expert used"}, {}),
    drops_in_evaluation: ({"other rows, evaluation", "batch size, evaluation", "loss gap, evaluation", "capacity"}, {}),
    select_the_worst: ({"selection"}, {}),
    a_drop_order_not_followed("random", "position"): ({"slots"}, {"drop_order": "random"}),
    a_drop_order_not_followed("probability", "position"): ({"slots"}, {"drop_order": "probability"}),
    rerouting_that_does_nothing: ({"slots"}, {"overflow": "reroute"}),
    a_router_that_is_not_trained: ({"layer's gradients"}, {}),
    experts_that_are_not_trained: ({"layer's gradients"}, {}),
    a_dead_balance_loss: ({"router learns"}, {}),
    balance_of_kept_choices_only: ({"balance loss"}, {}),
    always_the_first_expert_when_generating: ({"layer's output", "cache"}, {}),
    gates_of_one_in_evaluation: ({"gates"}, {}),
    sees_all_in_training: ({"own future, training"}, {"drop_order": "random"}),
    another_capacity_than_configured: ({"capacity"}, {}),
    a_rows_capacity_is_the_batchs: ({"other rows, training"}, {"capacity_group": "sequence"}),
    a_nan: (EVERY_FUTURE | {"batch size, evaluation", "cache", "loss gap, training"}, {}),
    training_scores_better: ({"loss gap, training"}, {}),
    an_expert_twice: ({"promise", "selection"}, {"top_k": 2}),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails(fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, options = FAULTS[fault]
    model = tiny_model(**options)
    fault(monkeypatch, model)
    result = verdicts(subject_of(model))
    assert {check for check in wanted if result[check] != Verdict.FAIL} == set()


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [(attention_without_a_mask, EVERY_FUTURE | {"cache"}),
     (drops_in_evaluation, {"other rows, evaluation", "batch size, evaluation"})],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_planted_fault_fails_with_tiny_logits_too(
    fault: Break, wanted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    fault(monkeypatch, model)
    model.head.weight.data *= 1e-6
    found = [*leaks.check(subject_of(model)), *scores.check(subject_of(model))]
    assert wanted <= {one.check for one in found if one.verdict == Verdict.FAIL}


def test_every_check_has_a_fault_that_fails_it() -> None:
    assert {check for wanted, _ in FAULTS.values() for check in wanted} == set(verdicts(subject_of()))
