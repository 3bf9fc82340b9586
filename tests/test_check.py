"""The certificate: sound models pass or leak as their rule is said to, and each planted fault fails where it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import BATCH_SIZE, TEXT, tiny_model
from test_causality import TABLE
from torch import Tensor

from switch_lm import attention, experts, noise, queueing, routing, switch
from switch_lm.check.certificate import certify
from switch_lm.check.choices import _is_capacity
from switch_lm.check.expected import depends_on_rows, sees_future
from switch_lm.check.finding import Finding, Verdict
from switch_lm.check.policies import measure, policies
from switch_lm.check.subject import Gap, Subject
from switch_lm.model import SwitchLM
from switch_lm.rule import RoutingRule
from switch_lm.vocab import Vocabulary

IDS = torch.randint(len(Vocabulary.of(TEXT)), (700,), generator=torch.Generator().manual_seed(0))


def subject_of(model: SwitchLM | None = None, **changes: Any) -> Subject:
    return Subject(model or tiny_model(**changes), IDS, BATCH_SIZE, alpha=0.01)


def found(subject: Subject) -> dict[str, Finding]:
    return {finding.check: finding for finding in certify(subject)}


def verdicts(subject: Subject) -> dict[str, Verdict]:
    return {name: finding.verdict for name, finding in found(subject).items()}


LEAKY_ROWS = {"other rows, training"}
LEAKY = LEAKY_ROWS | {"own future, training"}
SOUND: dict[str, tuple[dict[str, Any], set[str]]] = {
    "default": ({}, LEAKY_ROWS),
    "jitter and dropout": ({"router_jitter": 0.3, "dropout": 0.2, "expert_dropout": 0.2}, LEAKY_ROWS),
    "dropless": ({"capacity_factor": None}, set()),
    "by row": ({"capacity_group": "sequence"}, set()),
    "random": ({"drop_order": "random"}, LEAKY),
    "probability": ({"drop_order": "probability"}, LEAKY),
    "reroute": ({"overflow": "reroute"}, LEAKY),
    "passthrough": ({"overflow": "passthrough"}, LEAKY_ROWS),
    "two choices": ({"top_k": 2, "renormalize_gates": True}, LEAKY_ROWS),
    "two choices by choice": ({"top_k": 2, "queue_order": "choice"}, LEAKY),
    "straight through": ({"gate_scale": "straight_through"}, LEAKY_ROWS),
    "sampled": ({"selection": "sample"}, LEAKY_ROWS),
    "bias": ({"selection_bias_rate": 0.1}, LEAKY_ROWS),
    "shared expert": ({"shared_expert": True}, LEAKY_ROWS),
    "random drops": ({"random_drop_rate": 0.3}, LEAKY_ROWS),
    "every second block": ({"switch_every": 2}, LEAKY_ROWS),
    "one expert": ({"num_experts": 1, "capacity_factor": 0.75}, set()),  # who comes last is dropped, whatever the text
    "a capacity in evaluation": (
        {"eval_capacity_factor": 0.5},
        LEAKY_ROWS | {"other rows, evaluation", "batch size, evaluation", "loss gap, evaluation"},
    ),
    "dense": ({"switch_every": 0}, set()),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_model_passes_and_leaks_what_its_rule_is_said_to_leak(name: str) -> None:
    changes, leaks = SOUND[name]
    told = found(subject_of(**changes))
    assert [check for check, finding in told.items() if finding.verdict == Verdict.FAIL] == []
    leaking = {check for check, finding in told.items() if finding.verdict == Verdict.LEAKS}
    assert leaking - {"loss gap, training"} == leaks  # a leak need not lower the loss
    assert len(told) == (9 if name == "dense" else 21)
    assert all(finding.measured and finding.meaning for finding in told.values())


PEAKED: dict[str, dict[str, Any]] = {
    "second choices": {"top_k": 2, "renormalize_gates": True},
    "all choices": {"top_k": 4},
    "rerouted beside a shared expert": {"overflow": "reroute", "shared_expert": True},
}


@pytest.mark.parametrize("name", PEAKED)
def test_choices_with_a_tiny_gate_are_counted(name: str) -> None:
    model = tiny_model(**PEAKED[name])
    for layer in model.switch_layers:
        layer.w_router_DE.data *= 30
    assert verdicts(subject_of(model))["choices conserved"] == Verdict.PASS


def test_a_model_of_tiny_weights_still_learns() -> None:
    assert verdicts(subject_of(init_scale=1e-6))["router learns"] == Verdict.PASS


def test_of_a_single_window_nothing_is_said_of_other_rows() -> None:
    told = found(Subject(tiny_model(), IDS[:17], BATCH_SIZE, alpha=0.01))
    assert told["other rows, evaluation"].meaning == "the text has a single window: there are no other rows"
    assert "too short to tell" in told["every expert used"].meaning or told["every expert used"].figures["idle"] == 0
    assert told["every expert used"].verdict == Verdict.PASS


@pytest.mark.parametrize("name", TABLE)
def test_what_a_rule_is_said_to_do_is_what_interventions_find(name: str) -> None:
    options, verdict = TABLE[name]
    rule = RoutingRule(**{key: value for key, value in options.items() if hasattr(RoutingRule(), key)})
    limited = options["capacity_factor"] is not None
    assert sees_future(rule, limited=limited, training=True) == verdict.sees_its_future
    assert depends_on_rows(rule, limited=limited) == verdict.depends_on_other_rows


# --- Planted faults: what is broken, and the checks that must fail, among others

Break = Callable[[pytest.MonkeyPatch, SwitchLM], None]


def softmax_after_top_k(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(routing, "gates", lambda prob_TK, rule: prob_TK.log().softmax(dim=-1))


def capacity_rounded_down(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(
        switch, "expert_capacity", lambda T, E, factor: None if factor is None else max(1, int(factor * T / E))
    )


def counted_inclusively(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = queueing.queue_slots

    def one_later(expert_GN: Tensor, num_experts: int) -> Any:
        queue = real(expert_GN, num_experts)
        return queueing.Queue(queue.slot_GN + 1, queue.load_GE)

    patch.setattr(queueing, "queue_slots", one_later)


def load_after_dropping(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = routing.route

    def route(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        return replace(made, load_E=made.kept_E)

    patch.setattr("switch_lm.switch.route", route)


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


def _under_autocast(self: switch.SwitchFeedForward, x_TD: Tensor) -> Tensor:
    return (x_TD.to(self.w_router_DE.dtype) @ self.w_router_DE).float()


def router_in_bf16(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(switch.SwitchFeedForward, "router_logits", _under_autocast)


def jitter_in_place(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr("switch_lm.switch.jitter", lambda x_TD, epsilon: x_TD.mul_(1 + epsilon * torch.rand_like(x_TD)))


def copies(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.experts.w_in_EDF.data[3] = layer.experts.w_in_EDF.data[1]
        layer.experts.w_out_EFD.data[3] = layer.experts.w_out_EFD.data[1]


def an_idle_expert(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    w_router_DE = model.switch_layers[1].w_router_DE.data
    w_router_DE[:, 3] = w_router_DE[:, 1]  # of equals the first is taken


def drops_in_evaluation(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.eval_capacity_factor = 0.5


def select_the_worst(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(routing, "select", lambda logits_TE, probs_TE, **_: probs_TE.argmin(dim=-1, keepdim=True))


def a_rule_not_carried_out(order: str, instead: str) -> Break:
    def fault(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
        patch.setitem(queueing.DROP_ORDERS, order, queueing.DROP_ORDERS[instead])

    fault.__name__ = f"{order}_is_{instead}"
    return fault


def rerouting_that_does_not(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    def stay(expert_GN: Tensor, probs_GNE: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        return expert_GN, queueing.queue_slots(expert_GN, probs_GNE.shape[-1]).slot_GN

    patch.setattr(queueing, "_reroute", stay)


def a_router_that_is_not_taught(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(switch._NarrowProduct, "backward", lambda ctx, g: (g @ ctx.saved_tensors[1].T, torch.randn(16, 4)))


def experts_that_are_not_taught(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = experts.Experts.padded
    patch.setattr(experts.Experts, "padded", lambda self, x_ECD: real(self, x_ECD).detach() + 0 * x_ECD)


def bf16_with_a_gradient(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = switch._NarrowProduct.forward

    def rounded(ctx: Any, x_TD: Tensor, w_DE: Tensor) -> Tensor:
        return real(ctx, x_TD, w_DE).bfloat16().float()

    patch.setattr(switch._NarrowProduct, "forward", rounded)


def a_dead_balance_loss(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(routing.Routing, "mean_prob_E", property(lambda self: self.probs_TE.detach().mean(dim=0)))


def balance_of_what_is_kept(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    patch.setattr(routing.Routing, "mean_prob_E", property(lambda self: self.probs_TE[self.kept_TK[:, 0]].mean(dim=0)))


def always_the_first_expert_when_writing(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = experts.Experts.one_token
    patch.setattr(experts.Experts, "one_token", lambda self, x_1D, expert_11: real(self, x_1D, 0 * expert_11))


def gates_of_one_in_evaluation(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = routing.gates
    patch.setattr(routing, "gates", lambda p_TK, rule: real(p_TK, rule) if torch.is_grad_enabled() else 0 * p_TK + 1)


def sees_all_in_training(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    real = attention.Attention.forward

    def forward(self: attention.Attention, x_BSD: Tensor, **options: Any) -> Tensor:
        seen_BSD = x_BSD + 0.1 * x_BSD.flip(1) if self.training else x_BSD
        return real(self, seen_BSD, **options)

    patch.setattr(attention.Attention, "forward", forward)


def another_capacity_than_configured(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.capacity_factor = None


def places_of_a_row_are_the_batchs(patch: pytest.MonkeyPatch, model: SwitchLM) -> None:
    for layer in model.switch_layers:
        layer.rule = replace(layer.rule, capacity_group="batch")


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
    counted_inclusively: ({"choices conserved", "places"}, {}),
    load_after_dropping: ({"choices conserved"}, {}),
    last_come_first_served: ({"own future, training", "places"}, {}),
    attention_without_a_mask: (EVERY_FUTURE | {"cache", "loss gap, evaluation"}, {}),
    dropout_always: ({"no randomness, evaluation"}, {}),
    router_in_bf16: ({"float32 router"}, {}),
    bf16_with_a_gradient: ({"float32 router", "layer's gradients"}, {}),
    jitter_in_place: ({"layer's output"}, {"router_jitter": 0.1}),
    copies: ({"experts differ"}, {}),
    an_idle_expert: ({"every expert used"}, {}),
    drops_in_evaluation: ({"other rows, evaluation", "batch size, evaluation", "loss gap, evaluation", "capacity"}, {}),
    select_the_worst: ({"selection"}, {}),
    a_rule_not_carried_out("random", "position"): ({"places"}, {"drop_order": "random"}),
    a_rule_not_carried_out("probability", "position"): ({"places"}, {"drop_order": "probability"}),
    rerouting_that_does_not: ({"places"}, {"overflow": "reroute"}),
    a_router_that_is_not_taught: ({"layer's gradients"}, {}),
    experts_that_are_not_taught: ({"layer's gradients"}, {}),
    a_dead_balance_loss: ({"router learns"}, {}),
    balance_of_what_is_kept: ({"balance loss"}, {}),
    always_the_first_expert_when_writing: ({"layer's output", "cache"}, {}),
    gates_of_one_in_evaluation: ({"gates"}, {}),
    sees_all_in_training: ({"own future, training"}, {"drop_order": "random"}),
    another_capacity_than_configured: ({"capacity"}, {}),
    places_of_a_row_are_the_batchs: ({"other rows, training"}, {"capacity_group": "sequence"}),
    a_nan: (EVERY_FUTURE | {"batch size, evaluation", "cache", "loss gap, training"}, {}),
    training_scores_better: ({"loss gap, training"}, {"capacity_factor": None}),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails(fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, options = FAULTS[fault]
    model = tiny_model(**options)
    fault(monkeypatch, model)
    told = verdicts(subject_of(model))
    assert {check for check in wanted if told[check] != Verdict.FAIL} == set()


def test_every_check_has_a_fault_that_fails_it() -> None:
    assert {check for wanted, _ in FAULTS.values() for check in wanted} == set(verdicts(subject_of()))


def test_a_check_changes_neither_the_model_nor_the_random_state() -> None:
    model = tiny_model(dropout=0.2, drop_order="random")
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    certify(subject_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_every_policy_does_what_the_table_says_on_the_same_weights() -> None:
    subject = subject_of(tiny_model(capacity_factor=0.75))
    told = {one.policy: one for one in measure(subject, factor=0.75)}
    assert list(told) == [policy.name for policy in policies(subject)] and len(told) == 23
    assert all(Verdict.FAIL not in (one.sees_future, one.depends_on_rows) for one in told.values())
    assert told["position, drop"].sees_future == Verdict.PASS
    for leaking in ("random, drop", "probability, drop, by row", "position, reroute", "top 2, choice order, by row"):
        assert told[leaking].sees_future == Verdict.LEAKS, leaking
    by_row = {name: one.depends_on_rows for name, one in told.items() if name.endswith("by row")}
    assert set(by_row.values()) == {Verdict.PASS} and len(by_row) == 10
    free = told["no limit"]
    assert free.not_placed == 0.0 and free.by_future < 1e-12 and abs(free.gap.mean) < 1e-6
    assert told["position, drop"].not_placed > 0.2 and told["position, drop"].future is None


@pytest.mark.parametrize(
    ("capacity", "tokens", "experts", "factor", "right"),
    [(11, 100, 10, 1.1, True), (12, 100, 10, 1.1, False), (0, 1, 8, 1.0, False), (1, 1, 8, 1.0, True),
     (5, 5, 2, 4.0, True), (None, 9, 2, None, True), (9, 9, 2, None, False)],
)  # fmt: skip
def test_a_capacity_is_judged_in_fractions(
    capacity: int | None, tokens: int, experts: int, factor: float | None, right: bool
) -> None:
    assert _is_capacity(capacity, tokens, experts, factor) == right


def test_a_gap_is_paired_and_counts_windows_not_characters() -> None:
    gap = Gap.of(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    assert gap.mean == -1.0  # windows: +1 and -3
    assert gap.standard_error == pytest.approx(2.0)  # their deviation, sqrt(8), over sqrt(2)
