"""A routing as a list: any number of experts per token, a length of the shapes alone, sums in the order of the list."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import REPEATABLE
from small_models import layer, router_of
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from switch_lm.measure.metrics import dropped_choices, num_choices
from switch_lm.model.dispatch import TokenRows
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.base import Router
from switch_lm.routers.losses import importance_loss, load_balancing_loss
from switch_lm.routers.options import TopKOptions
from switch_lm.routers.routing import Routing

D = 8


class ByExpert(Router):
    """Each expert takes its `PICKS` most probable tokens: a list of E x C."""

    PICKS = 3

    def assign(self, x_TD: Tensor, logits_TE: Tensor, *, capacity: int | None, **_: Any) -> Routing:
        probs_TE = logits_TE.softmax(dim=-1)
        gate_CE, token_CE = probs_TE.topk(self.PICKS, dim=0)
        expert_N = torch.arange(self.num_experts).repeat_interleave(self.PICKS)
        return Routing.listed(
            token_N=token_CE.T.flatten(),
            expert_N=expert_N,
            gate_N=gate_CE.T.flatten(),
            scores_TE=probs_TE,
            capacity=capacity,
        )


class AboveCutOff(Router):
    """A token goes to every expert whose sigmoid it exceeds 0.5: a list of T x E, of which some are used."""

    def assign(self, x_TD: Tensor, logits_TE: Tensor, *, capacity: int | None, **_: Any) -> Routing:
        scores_TE, (T, E) = logits_TE.sigmoid(), logits_TE.shape
        return Routing.listed(
            token_N=torch.arange(T).repeat_interleave(E),
            expert_N=torch.arange(E).repeat(T),
            gate_N=scores_TE.flatten(),
            scores_TE=scores_TE,
            used_N=(scores_TE > 0.5).flatten(),
            capacity=capacity,
        )


def layer_with(family: type[Router], num_experts: int = 4, **options: Any) -> SwitchFeedForward:
    module = layer(num_experts, **options)
    module.router = family(replace(family.Options(), jitter=0.0), d_model=D, num_experts=num_experts)
    torch.nn.init.normal_(torch.as_tensor(module.router.w_DE))
    return module


@dataclass(frozen=True)
class Case:
    """A list of assignments in any order, made of given pairs of a token and an expert."""

    pairs: list[tuple[int, int]]
    used: list[bool] | None
    tokens: int
    experts: int
    capacity: int | None
    seed: int
    groups: int = 1

    def build(self) -> tuple[SwitchFeedForward, Tensor, Tensor, Routing]:
        module, draw = layer(self.experts), torch.Generator().manual_seed(self.seed)
        x_TD = torch.randn(self.tokens, D, generator=draw).requires_grad_()
        gate_N = torch.rand(len(self.pairs), generator=draw).requires_grad_()
        token_N, expert_N = torch.tensor(self.pairs).T
        routing = Routing.listed(
            token_N=token_N,
            expert_N=expert_N,
            gate_N=gate_N,
            scores_TE=torch.rand(self.tokens, self.experts, generator=draw),
            used_N=None if self.used is None else torch.tensor(self.used),
            capacity=self.capacity,
            num_groups=self.groups,
        )
        return module, x_TD, gate_N, routing


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, E = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    T = groups * draw(st.integers(1, 6))
    every = [(t, e) for t in range(T) for e in range(E)]
    pairs = draw(st.lists(st.sampled_from(every), min_size=1, max_size=len(every), unique=True))
    marks = st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))
    capacity = draw(st.one_of(st.none(), st.integers(1, T)))
    return Case(pairs, draw(st.one_of(st.none(), marks)), T, E, capacity, draw(st.integers(0, 1000)), groups)


def kept_by_hand(case: Case) -> list[bool]:
    """Whoever comes to an expert that is full for its group is dropped; what is not used takes no slot."""
    taken, kept = Counter[tuple[int, int]](), []
    for number, (token, expert) in enumerate(case.pairs):
        used, queue = case.used is None or case.used[number], (token * case.groups // case.tokens, expert)
        kept.append(used and (case.capacity is None or taken[queue] < case.capacity))
        taken[queue] += used
    return kept


@settings(REPEATABLE, max_examples=150)
@given(cases())
def test_outputs_and_gradients_equal_a_loop_over_the_list(case: Case) -> None:
    module, x_TD, gate_N, routing = case.build()
    rows, kept = [torch.zeros(D)] * case.tokens, kept_by_hand(case)
    for number, (t, e) in enumerate(case.pairs):
        if kept[number]:
            hidden_F = module.experts.activation(x_TD[t] @ module.experts.w_in_EDF[e])
            rows[t] = rows[t] + gate_N[number] * (hidden_F @ module.experts.w_out_EFD[e])
    want_TD, y_TD = torch.stack(rows), module.combined(x_TD, routing)
    torch.testing.assert_close(y_TD, want_TD, rtol=1e-5, atol=1e-5)
    busy = {pair[0] for k, pair in zip(kept, case.pairs, strict=True) if k}
    idle = [t for t in range(case.tokens) if t not in busy]
    assert torch.equal(y_TD[idle], torch.zeros(len(idle), D))  # exactly
    if any(kept):
        over = [x_TD, gate_N, *module.experts.parameters()]
        weights_TD = torch.randn(case.tokens, D, generator=torch.Generator().manual_seed(7))
        got, want = (torch.autograd.grad((y * weights_TD).sum(), over, materialize_grads=True) for y in (y_TD, want_TD))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@settings(REPEATABLE, max_examples=150)
@given(cases())
def test_counts_of_a_list_add_up(case: Case) -> None:
    _, _, _, routing = case.build()
    used, kept = case.used or [True] * len(case.pairs), kept_by_hand(case)
    load = [sum(u and e == pair[1] for u, pair in zip(used, case.pairs, strict=True)) for e in range(case.experts)]
    assert routing.load_E.tolist() == load
    assert routing.kept_N.tolist() == kept
    by_expert = Counter(pair[1] for pair, k in zip(case.pairs, kept, strict=True) if k)
    assert routing.kept_E.tolist() == [by_expert[e] for e in range(case.experts)]
    assert int(routing.num_assignments) == int(num_choices(routing)) == sum(used)
    assert int(dropped_choices(routing)) == sum(used) - sum(kept)
    if any(used):
        assert float(routing.fraction_E.sum()) == pytest.approx(1.0)
        by_hand = case.experts * sum(n / sum(used) * p for n, p in zip(load, routing.mean_prob_E.tolist(), strict=True))
        assert float(load_balancing_loss(routing)) == pytest.approx(by_hand, rel=1e-5)


@settings(REPEATABLE, max_examples=100)
@given(cases(), st.integers(1, 6))
def test_the_first_assignments_of_each_token_are_in_the_order_of_the_list(case: Case, most: int) -> None:
    _, _, _, routing = case.build()
    used, N = case.used or [True] * len(case.pairs), len(case.pairs)
    for t, row in enumerate(routing.first_TM(most).tolist()):
        own = [n for n in range(N) if used[n] and case.pairs[n][0] == t][:most]
        assert row == own + [N] * (most - len(own))


VIEWS = ["expert_TK", "assigned_TK", "gate_TK", "slot_TK", "kept_TK"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_by_token_is_refused_where_tokens_have_any_number_of_experts(view: str) -> None:
    _, _, _, routing = Case([(0, 1), (0, 0)], None, 2, 2, None, 0).build()
    with pytest.raises(ValueError, match="any number of experts: read token_N and expert_N"):
        getattr(routing, view)


@pytest.mark.parametrize(("family", "length"), [(ByExpert, 4 * ByExpert.PICKS), (AboveCutOff, 24 * 4)])
def test_the_length_of_a_list_depends_on_shapes_alone_and_nothing_recompiles(family: type[Router], length: int) -> None:
    module, compiler = layer_with(family, capacity_factor=1.0), CompileCounter()
    torch._dynamo.reset()
    compiled, frames = torch.compile(module, backend=compiler), []
    for scale in (1.0, -3.0, 0.0):  # 0.0: no score is above 0.5
        x_BSD = scale * torch.randn(2, 12, D)
        y_BSD, routing = compiled(x_BSD)
        torch.testing.assert_close(y_BSD, module(x_BSD)[0])
        assert routing.token_N.numel() == length
        frames.append(compiler.frame_count)
    assert 0 < frames[0] == frames[-1]


def test_a_layer_whose_list_is_all_unused_adds_exactly_nothing_and_its_gradients_are_finite() -> None:
    module, x_BSD = layer_with(AboveCutOff, capacity_factor=None), torch.zeros(2, 5, D, requires_grad=True)
    y_BSD, routing = module(x_BSD)
    (y_BSD.sum() + (importance := importance_loss(routing))).backward()
    assert int(routing.num_assignments) == 0 == importance.item() and torch.equal(y_BSD, torch.zeros(2, 5, D))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x_BSD, *module.parameters()))


# --- Nothing is added atomically: two runs are bit-equal, and a token's outputs are added in rank order

FAMILIES: dict[str, Callable[..., Router]] = {
    **{f"K = {k}": partial(router_of, TopKOptions(top_k=k)) for k in (1, 2, 4)},
    "by expert": ByExpert,
    "above a cut-off": AboveCutOff,
}
ATOMIC = ("index_add", "scatter_add", "scatter_reduce", "index_put", "embedding_dense_backward", "put")


def wide_layer(family: str, capacity_factor: float | None) -> SwitchFeedForward:
    torch.manual_seed(0)
    router = FAMILIES[family](d_model=64, num_experts=8)
    return SwitchFeedForward(d_model=64, d_ff=96, num_experts=8, router=router, capacity_factor=capacity_factor)


class Operations(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0].strip("_"))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("capacity_factor", [None, 1.25])
def test_dispatch_and_combine_add_nothing_atomically(family: str, capacity_factor: float | None) -> None:
    module, x_TD = wide_layer(family, capacity_factor), torch.randn(96, 64, requires_grad=True)
    routing = module(x_TD[None])[1]
    routing = replace(routing.detached(), gate_N=routing.gate_N.detach().requires_grad_())
    with Operations() as seen:
        module.combined(x_TD, routing).sum().backward()
    assert x_TD.grad is not None and "index_select" in seen.names
    assert seen.names.isdisjoint(ATOMIC)


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_passes_with_two_threads_are_bit_equal(family: str) -> None:
    assert_passes_are_bit_equal(family, compiled=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++ (on Debian: apt install g++)")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", ["K = 1", "K = 2", "by expert"])  # one of each way of adding
def test_two_compiled_passes_with_two_threads_are_bit_equal(family: str) -> None:
    assert_passes_are_bit_equal(family, compiled=True)


def assert_passes_are_bit_equal(family: str, *, compiled: bool) -> None:
    module, x_BSD = wide_layer(family, 1.25), torch.randn(8, 64, 64)
    forward = torch.compile(module) if compiled else module
    passes = []
    for _ in range(2):
        x = x_BSD.clone().requires_grad_()
        torch.manual_seed(1)
        y_BSD, routing = forward(x)
        loss = y_BSD.square().sum() + load_balancing_loss(routing)
        passes.append([y_BSD, *torch.autograd.grad(loss, [x, *module.parameters()])])
    assert all(torch.equal(first, second) for first, second in zip(*passes, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
def test_a_tokens_outputs_are_added_in_rank_order_and_rounded_once(top_k: int, dtype: torch.dtype) -> None:
    """A reduction over a dimension of eight adds in four parts: other bits in float32."""
    logits_TE = torch.randn(300, 8)
    router = router_of(TopKOptions(top_k=top_k), num_experts=8)
    routing = router.assign(logits_TE, logits_TE, ids_T=None, position_T=None, capacity=None, num_groups=1)
    listed = replace(routing, choices_per_token=None)
    y_ND = torch.randn(300 * top_k, 16).to(dtype)
    total = reduce(torch.add, y_ND.float().view(300, top_k, 16).unbind(1))
    for of_kind in (routing, listed):
        assert torch.equal(TokenRows.of(of_kind).sum(y_ND), total.to(dtype))


def test_the_sum_of_two_has_the_bits_of_the_sum_over_a_dimension() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits_TE, y_ND = torch.randn(300, 8), torch.randn(600, 16).to(dtype)
        router = router_of(TopKOptions(top_k=2), num_experts=8)
        routing = router.assign(logits_TE, logits_TE, ids_T=None, position_T=None, capacity=None, num_groups=1)
        assert torch.equal(TokenRows.of(routing).sum(y_ND), y_ND.view(300, 2, 16).sum(dim=1))
