"""The layer's fast path against two slow ones: forward, gradients, drops and counts, for every rule that is allowed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import REPEATABLE, Slow, einsum_form, places_of_an_expert, token_by_token
from small_models import layer
from torch import Tensor

from switch_lm.model.dispatch import ExpertRows
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.options import BalanceOptions, TopKOptions
from switch_lm.routers.routing import Routing

D, F = 6, 10
OPTIONS = {
    "top_k": (1, 2, 3, 4),
    "renormalize_gates": (False, True),
    "gate_scale": ("probability", "straight_through"),
    "drop_order": ("position", "random", "probability"),
    "queue_order": ("token", "choice"),
    "overflow": ("drop", "reroute", "passthrough"),
    "capacity_group": ("batch", "sequence"),
}


def allowed(rule: TopKOptions) -> bool:
    """Whether the configuration allows this combination of options."""
    return not list(rule.problems(8, BalanceOptions(), 1.0))


EVERY_RULE = [TopKOptions(**dict(zip(OPTIONS, values, strict=True))) for values in product(*OPTIONS.values())]  # type: ignore[arg-type]
RULES = [rule for rule in EVERY_RULE if allowed(rule)]


@dataclass(frozen=True)
class Case:
    """A layer and its input, small enough to loop over."""

    rule: TopKOptions
    rows: int
    positions: int
    experts: int
    capacity_factor: float | None
    sharpness: float = 1.0  # of the router; 0: every expert ties for every token
    crowding: float = 0.0  # how strongly tokens prefer the first experts to the last, which stay empty
    training: bool = True
    twins: bool = False  # every token comes twice: equal priorities
    seed: int = 0

    def build(self, activation: str = "relu") -> tuple[SwitchFeedForward, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        module = layer(self.experts, self.rule, d_model=D, d_ff=F, activation=activation)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-2] ** 0.5
        x_TD = torch.randn(self.rows * self.positions, D, generator=generator)
        if self.twins:
            x_TD = x_TD[torch.arange(len(x_TD)) // 2]
        x_TD[:, 0] = 1.0
        w_DE = torch.as_tensor(module.router.w_DE)
        w_DE.data[0] = torch.linspace(self.crowding, 0.0, self.experts)
        w_DE.data *= self.sharpness
        return module.train(self.training), x_TD.view(self.rows, self.positions, D).requires_grad_()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rule = draw(st.sampled_from(RULES))
    rows = draw(st.integers(1, 8))
    factor = st.one_of(st.none(), st.floats(0.01, 8.0), st.sampled_from([0.25, 1.0, 1.1, 1.25, 2.0]))
    return Case(
        rule=rule,
        rows=rows,
        positions=draw(st.integers(1, 200 // rows)),
        experts=draw(st.integers(rule.top_k, 32)),
        capacity_factor=draw(factor),
        sharpness=draw(st.sampled_from([0.3, 1.0, 4.0] + [0.0] * (rule.top_k == 1))),
        crowding=draw(st.sampled_from([0.0, 1.0, 6.0])),
        training=draw(st.booleans()),
        twins=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def fast(case: Case, module: SwitchFeedForward, x_BSD: Tensor) -> tuple[Tensor, Routing]:
    torch.manual_seed(case.seed)  # of a random drop order
    y_BSD, routing = module(x_BSD, capacity_factor=case.capacity_factor)
    return y_BSD, routing


def slow(case: Case, module: SwitchFeedForward, x_BSD: Tensor) -> Slow:
    torch.manual_seed(case.seed)
    return token_by_token(module, x_BSD, case.capacity_factor)


def weights_like(y_BSD: Tensor) -> Tensor:
    return torch.randn(y_BSD.shape, generator=torch.Generator().manual_seed(7))


def gradients(y_BSD: Tensor, module: SwitchFeedForward, x_BSD: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted mean of the outputs, with respect to the input and all parameters."""
    over = {"x": x_BSD, **dict(module.named_parameters())}
    loss = (y_BSD.float() * weights_like(y_BSD)).sum() / y_BSD.shape[1]
    values = torch.autograd.grad(loss, list(over.values()), materialize_grads=True)
    return dict(zip(over, values, strict=True))


def assert_equal_to(case: Case, want_y: Tensor, got_y: Tensor, module: SwitchFeedForward, x_BSD: Tensor) -> None:
    torch.testing.assert_close(got_y, want_y, rtol=1e-5, atol=1e-5)
    want, got = gradients(want_y, module, x_BSD), gradients(got_y, module, x_BSD)
    assert want.keys() == {"x", "router.w_DE", "experts.w_in_EDF", "experts.w_out_EFD"}
    for name, value in want.items():
        torch.testing.assert_close({name: got[name]}, {name: value}, rtol=1e-5, atol=1e-5)


def assert_equal_to_the_loop(case: Case) -> Slow:
    module, x_BSD = case.build()
    (y_BSD, routing), want = fast(case, module, x_BSD), slow(case, module, x_BSD)
    assert torch.equal(routing.kept_TK, want.kept_TK), case
    assert_equal_to(case, want.y_BSD, y_BSD, module, x_BSD)
    return want


def test_the_rules_tested_here_are_all_that_the_configuration_allows() -> None:
    keys = asdict(TopKOptions()).keys()
    varied = {name for name in keys if len({getattr(rule, name) for rule in RULES}) > 1}
    with_tests_of_their_own = {"name", "selection", "random_drop_rate", "jitter", "input_dropout"}
    assert varied == keys - with_tests_of_their_own
    assert len(RULES) == 36 + 3 * 72  # one choice: 2 gates, 3 orders, 3 overflows, 2 groups; more: 3, 3, 2, 2 and 2


@pytest.mark.parametrize("capacity_factor", [0.5, 1.0])
def test_every_allowed_rule_equals_the_loop_over_tokens_under_crowding(capacity_factor: float) -> None:
    for number, rule in enumerate(RULES):
        case = Case(rule, 2, 9, experts=5, capacity_factor=capacity_factor, crowding=1.5, seed=number)
        want = assert_equal_to_the_loop(case)
        assert rule.overflow == "reroute" or not want.kept_TK.all(), case


@settings(REPEATABLE, max_examples=150)
@given(cases())
def test_outputs_drops_and_gradients_equal_a_loop_over_tokens(case: Case) -> None:
    assert_equal_to_the_loop(case)


BY_POSITION = [
    rule
    for rule in RULES
    if (rule.drop_order, rule.queue_order, rule.overflow) == ("position", "token", "drop")
    and (rule.renormalize_gates, rule.gate_scale) == (False, "probability")
]


@settings(REPEATABLE, max_examples=60)
@given(cases(), st.sampled_from(BY_POSITION))
def test_outputs_and_gradients_equal_the_one_hot_einsums_of_appendix_f(case: Case, rule: TopKOptions) -> None:
    experts = max(rule.top_k, case.experts)
    sharpness = case.sharpness or 1.0
    case = Case(**vars(case) | {"rule": rule, "experts": experts, "sharpness": sharpness})
    module, x_BSD = case.build()
    y_BSD, _ = fast(case, module, x_BSD)
    assert_equal_to(case, einsum_form(module, x_BSD, case.capacity_factor), y_BSD, module, x_BSD)


@settings(REPEATABLE, max_examples=60)
@given(cases())
def test_in_bf16_choices_are_the_same_and_outputs_and_gradients_within_six_percent(case: Case) -> None:
    """bf16 rounds each of a dozen steps by up to 2^-9: about 1% of a norm, up to 3% where one token's sums cancel.

    The router's gradient consists of inner products of output and loss weight, whose terms cancel; its scale is taken
    without cancellation.
    """
    module, x_BSD = case.build("relu_squared")  # relu's gradient jumps where a rounding moves a value past 0
    with torch.autocast("cpu", torch.bfloat16):
        y_BSD, routing = fast(case, module, x_BSD)
    want = slow(case, module, x_BSD)
    assert y_BSD.dtype == torch.bfloat16
    assert torch.equal(routing.kept_TK, want.kept_TK)
    got, exact = gradients(y_BSD, module, x_BSD), gradients(want.y_BSD, module, x_BSD)
    got["y"], exact["y"] = y_BSD.float(), want.y_BSD
    uncancelled_BS = (weights_like(want.y_BSD) * want.y_BSD).abs().sum(dim=-1) * x_BSD.norm(dim=-1)
    scale = {name: value.norm() for name, value in exact.items()}
    scale["router.w_DE"] = uncancelled_BS.norm() / case.positions
    for name, value in exact.items():
        assert (got[name] - value).norm() <= 0.06 * scale[name] + 1e-6, name


@settings(REPEATABLE, max_examples=150)
@given(cases())
def test_counts_add_up_and_a_slot_is_used_once(case: Case) -> None:
    module, x_BSD = case.build()
    _, routing = fast(case, module, x_BSD)
    T, K, E, G = case.rows * case.positions, case.rule.top_k, case.experts, routing.num_groups
    assert routing.load_E.tolist() == [(routing.expert_TK == e).sum() for e in range(E)]
    assert int(routing.load_E.sum()) == T * K
    assert int(routing.kept_E.sum()) == int(routing.kept_TK.sum())
    if case.capacity_factor is None:
        assert routing.capacity is None and routing.kept_TK.all()
    else:
        assert (case.rows if case.rule.capacity_group == "sequence" else 1) == G
        C = places_of_an_expert(T // G, E, case.capacity_factor)
        assert routing.capacity == C
        expert_GN, assigned_GN, kept_GN = (
            value_TK.reshape(G, -1) for value_TK in (routing.expert_TK, routing.assigned_TK, routing.kept_TK)
        )
        for g in range(G):
            load_E, kept_E = expert_GN[g].bincount(minlength=E), assigned_GN[g][kept_GN[g]].bincount(minlength=E)
            if case.rule.overflow == "reroute":
                assert kept_E.max() <= C and int(kept_E.sum()) == min(T // G, E * C)
            else:
                assert kept_E.tolist() == load_E.clamp(max=C).tolist()
    kept_N, slots = routing.kept_TK.flatten(), routing.capacity and routing.num_groups * routing.capacity
    for rows in (ExpertRows.padded(routing, slots or int(routing.load_E.max())), ExpertRows.packed(routing)):
        used = rows.row_N[kept_N]
        assert len(set(used.tolist())) == len(used)
        assert (rows.row_N[~kept_N] == len(rows.choice_P)).all()
        assert torch.equal(rows.choice_P[used], kept_N.nonzero().flatten())  # the inverse map
        assert int((rows.choice_P < T * K).sum()) == len(used)  # and the other slots are empty
        if rows.end_E is not None:  # nothing lies between two experts
            expert_P = torch.bucketize(used, rows.end_E.contiguous(), right=True)
            assert torch.equal(expert_P, routing.assigned_N[kept_N])
            assert int(rows.end_E[-1]) == (len(used) if slots else routing.num_assignments)


@settings(REPEATABLE, max_examples=60)
@given(cases(), st.sampled_from([0.1, 0.5, 0.95]))
def test_choices_dropped_at_random_add_nothing_and_give_their_slots_to_no_other(case: Case, rate: float) -> None:
    rule = replace(case.rule, random_drop_rate=rate, drop_order="position")
    case = replace(case, rule=rule, training=True)
    module, x_BSD = case.build()
    y_BSD, routing = fast(case, module, x_BSD)
    torch.manual_seed(case.seed)
    spared_TK = torch.rand(case.rows * case.positions, rule.top_k) >= rate  # the layer's only draw
    want = token_by_token(module, x_BSD, case.capacity_factor, spared_TK=spared_TK)
    assert torch.equal(routing.kept_TK, want.kept_TK)
    assert routing.kept_E.tolist() == routing.assigned_TK[want.kept_TK].bincount(minlength=case.experts).tolist()
    assert_equal_to(case, want.y_BSD, y_BSD, module, x_BSD)


@settings(REPEATABLE, max_examples=30)
@given(cases(), st.booleans(), st.booleans())
def test_sampled_choices_a_bias_and_a_shared_expert_equal_the_loop(case: Case, drawn: bool, shared: bool) -> None:
    _, x_BSD = case.build()
    rule = replace(case.rule, selection="sample" if drawn else "argmax", drop_order="position")
    balance = BalanceOptions(name="loss" if drawn else "sign")
    module = layer(case.experts, rule, balance, d_model=D, d_ff=F, shared_expert=shared)
    torch.manual_seed(case.seed)
    if module.router.bias_E is not None:
        module.router.bias_E.copy_(0.2 * torch.randn(case.experts))
    y_BSD, routing = module(x_BSD, capacity_factor=case.capacity_factor)
    selected_TK = routing.expert_TK if drawn else None
    want = token_by_token(module, x_BSD, case.capacity_factor, selected_TK=selected_TK)
    assert torch.equal(routing.kept_TK, want.kept_TK)
    torch.testing.assert_close(y_BSD, want.y_BSD, rtol=1e-5, atol=1e-5)
