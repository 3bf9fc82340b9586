"""Each family of routers: its layer against autograd through its oracle's loop, and its equations in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from compare import same
from conftest import MakeRun, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import REPEATABLE, places_of_an_expert
from small_models import family
from torch import Tensor

from switch_lm.certificate.layers import Judged, by_a_loop, by_oracle
from switch_lm.config.families import load
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.probe.subject import calls, used
from switch_lm.routers.balance import by_quantile, by_sign
from switch_lm.routers.base import Router
from switch_lm.routers.hashing import spread
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import BalanceOptions, RouterOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.uniform import mixed
from switch_lm.storage.checkpoint import read_model

D, F, V = 6, 10, 7
QUANTILE = BalanceOptions("quantile")
BY_ROW: dict[str, Any] = {"capacity_group": "sequence"}
RULES = [
    *(family("sigmoid", top_k=k, overflow=o) for k in (1, 2) for o in ("drop", "passthrough")),
    family("sigmoid", overflow="reroute"), family("sigmoid", top_k=2, drop_order="probability", **BY_ROW),
    family("frozen"), family("frozen", gate_scale="straight_through", **BY_ROW),
    family("hash"), family("hash", balanced=False, **BY_ROW), family("uniform", overflow="passthrough"),
    family("expert_choice"), family("expert_choice", **BY_ROW), family("threshold"), family("threshold", top_k=2),
]  # fmt: skip


def router_of(rule: RouterOptions, num_experts: int, d_model: int, balance: BalanceOptions | None = None) -> Any:
    """Without jitter, in evaluation, and told that characters are ever rarer."""
    of_class = load("router", rule.name)
    router = of_class(replace(rule, jitter=0.0), d_model=d_model, num_experts=num_experts, balance=balance)
    router.prepare(torch.arange(V, 0, -1) ** 2)
    return router.eval()


@dataclass(frozen=True)
class Case:
    """A layer and its input, small enough to loop over."""

    rule: RouterOptions
    rows: int
    positions: int
    experts: int
    capacity_factor: float | None
    training: bool
    warm: bool  # after a warm-up
    biased: bool
    seed: int

    def build(self) -> tuple[SwitchFeedForward, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)
        balance = QUANTILE if self.biased and self.rule.selects_by_score and self.rule.top_k < self.experts else None
        router = router_of(self.rule, self.experts, D, balance)
        module = SwitchFeedForward(d_model=D, d_ff=F, num_experts=self.experts, router=router)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) / parameter.shape[-2] ** 0.5
        for name, buffer in router.named_buffers():
            if name == "steps":
                buffer.fill_(1000 * self.warm)
            elif name in ("cutoff_E", "bias_E"):
                buffer.add_(0.2 * torch.randn(self.experts, generator=draw))
        x_BSD = torch.randn(self.rows, self.positions, D, generator=draw)
        return module.train(self.training), x_BSD.requires_grad_()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rule, rows = draw(st.sampled_from(RULES)), draw(st.integers(1, 5))
    factor = st.one_of(st.none(), st.sampled_from([0.3, 0.5, 1.0, 1.25, 2.0, 9.0]))
    positions, experts = draw(st.integers(1, 60 // rows)), draw(st.integers(max(2, rule.top_k), 8))
    training, warm, biased = (draw(st.booleans()) for _ in range(3))
    return Case(rule, rows, positions, experts, draw(factor), training, warm, biased, draw(st.integers(0, 1000)))


@settings(REPEATABLE, max_examples=250)
@given(cases())
def test_outputs_drops_and_gradients_equal_a_loop_over_what_the_oracle_expects(case: Case) -> None:
    module, x_BSD = case.build()
    B, S = case.rows, case.positions
    ids_BS = torch.arange(B * S).view(B, S) ** 2 % V
    with calls(module) as seen:
        y_BSD, routing = module(x_BSD, ids_BS=ids_BS, position_S=torch.arange(S), capacity_factor=case.capacity_factor)
    result, real_N = Judged.of(routing, by_oracle(seen[0], module.router.options)), used(routing)
    assert result.wrong == 0 and not result.tied
    assert len(result.expected.token) == int(real_N.sum()) == int(routing.load_E.sum())
    if result.expected.kept:
        same_N = torch.tensor(result.expected.kept)[result.place_N] == routing.kept_N
        assert same_N[real_N].all() and result.same_expert_N(routing)[routing.kept_N & real_N].all()
    x_TD, gate_N = x_BSD.flatten(0, 1), result.gate_N(routing)
    torch.testing.assert_close(routing.gate_N[real_N], gate_N[real_N])
    want_TD = by_a_loop(module, x_TD, routing, gate_N, passes_dropped=result.expected.passes_dropped)
    torch.testing.assert_close(y_BSD.flatten(0, 1), want_TD, rtol=1e-5, atol=1e-5)
    over = [x_BSD, *(weight for weight in module.parameters() if weight.requires_grad)]
    weight_TD = torch.randn(B * S, D, generator=torch.Generator().manual_seed(7))
    losses = [(y_TD * weight_TD).sum() / S for y_TD in (y_BSD.flatten(0, 1) + 0.0 * x_TD, want_TD + 0.0 * x_TD)]
    got, want = (torch.autograd.grad(loss, over, retain_graph=True, materialize_grads=True) for loss in losses)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    if case.rule.name == "expert_choice" and case.training and case.capacity_factor is not None:
        groups = case.rule.num_groups(B)
        slots = groups * places_of_an_expert(B * S // groups, case.experts, case.capacity_factor)
        assert routing.load_E.tolist() == [slots] * case.experts and bool(routing.kept_N.all())


@pytest.mark.parametrize("name", ["sigmoid", "frozen", "hash", "uniform", "expert_choice", "threshold"])
def test_generation_one_character_at_a_time_equals_a_whole_pass(name: str) -> None:
    model, ids_BS = tiny_model(11, router=family(name)), torch.arange(48).view(3, 16) ** 2 % 11
    together_BS = whole(model, ids_BS, ids_BS, capacity_factor=None)
    torch.testing.assert_close(character_by_character(model, ids_BS, ids_BS), together_BS, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["hash", "expert_choice", "threshold"])
def test_a_checkpoint_keeps_what_a_router_has_stored(name: str, make_run: MakeRun) -> None:
    model = tiny_model(router=family(name))
    for value in model.routers[1].state_dict().values():
        value.add_(1)
    again, _ = read_model(make_run("kept", model=model))
    assert same(again.state_dict(), model.state_dict())


# --- Equations, with W_r = 1, so that scores are known: x is the logit of a sigmoid, or the log of a probability

A = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]
B = [[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]


def known(rule: RouterOptions, num_experts: int = 2, balance: BalanceOptions | None = None) -> Any:
    router = router_of(rule, num_experts, num_experts, balance)
    if router.w_DE is not None:
        router.w_DE.data = torch.eye(num_experts)
    return router


def routed(router: Router, scores: list[list[float]], capacity: int | None = None, num_groups: int = 1) -> Routing:
    score_TE = torch.tensor(scores)
    x_TE = score_TE.log() if router.name == "expert_choice" else score_TE.logit()
    return router(x_TE, capacity=capacity, num_groups=num_groups).detached()


def pairs(routing: Routing) -> list[tuple[int, int]]:
    real_N = used(routing)
    return sorted(zip(routing.token_N[real_N].tolist(), routing.expert_N[real_N].tolist(), strict=True))


S3 = [[0.9, 0.6, 0.1], [0.2, 0.3, 0.5]]


def test_a_sigmoids_gate_is_the_score_of_one_expert_or_a_share_of_the_chosen_ones_and_a_bias_only_selects() -> None:
    one = routed(known(family("sigmoid"), 3), S3)
    assert pairs(one) == [(0, 0), (1, 2)] and one.gate_N.tolist() == pytest.approx([0.9, 0.5])
    two = routed(known(family("sigmoid", top_k=2), 3), S3)
    assert two.expert_TK.tolist() == [[0, 1], [2, 1]]
    assert two.gate_TK.flatten().tolist() == pytest.approx([0.6, 0.4, 0.625, 0.375])  # sum to 1
    shares = [0.5625, 0.375, 0.0625, 0.2, 0.3, 0.5]
    assert one.probs_TE.flatten().tolist() == pytest.approx(shares)
    assert float(load_balancing_loss(one)) == pytest.approx(3 * (0.5 * 0.38125 + 0.5 * 0.28125))  # E x sum of f P
    router = known(family("sigmoid", top_k=2), 3, BalanceOptions("sign"))
    router.bias_E.copy_(torch.tensor([-0.5, 0.0, 0.2]))  # s + b: 0.4 0.6 0.3, and -0.3 0.3 0.7
    biased = routed(router, S3)
    assert biased.expert_TK.tolist() == [[1, 0], [2, 1]]
    assert biased.gate_TK.flatten().tolist() == pytest.approx([0.4, 0.6, 0.625, 0.375])


def test_a_hash_gives_the_most_frequent_character_left_to_the_expert_with_the_least_load() -> None:
    """Loads after each: 10 0, 10 7, 10 12, 14 12, 14 15, 17 15; of equal ones the expert with fewer characters."""
    counts_V = torch.tensor([5, 10, 3, 7, 3, 4])
    assert spread(counts_V, 2).tolist() == [1, 0, 1, 1, 0, 0]
    assert spread(torch.tensor([0, 0, 4, 0]), 3).tolist() == [1, 2, 0, 1]
    router = known(family("hash"))
    router.prepare(counts_V)
    routing = router(torch.zeros(3, 2), ids_T=torch.tensor([2, 4, 2]))
    assert pairs(routing) == [(0, 1), (1, 0), (2, 1)] and routing.gate_N.tolist() == [1.0] * 3
    assert routing.logits_TE is None and list(router.parameters()) == []


def test_a_hash_that_is_not_balanced_is_drawn_from_the_seed() -> None:
    router, drawn = known(family("hash", balanced=False), 4), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        router.prepare(torch.ones(4000, dtype=torch.int64))
        drawn.append(router.expert_V)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].bincount().tolist() == pytest.approx([1000] * 4, abs=5 * math.sqrt(4000 * 3 / 16))
    assert drawn[0].bincount().tolist() != [1000] * 4


def test_uniform_draws_evenly_in_training_and_hashes_position_and_character_evenly_in_evaluation() -> None:
    torch.manual_seed(0)
    router, draws = known(family("uniform"), 8), 40_000
    trained = router.train()(torch.zeros(draws, 8))
    assert trained.load_E.tolist() == pytest.approx([draws / 8] * 8, abs=5 * math.sqrt(draws * 7 / 64))
    assert not torch.equal(router(torch.zeros(draws, 8)).expert_N, trained.expert_N) and (trained.gate_N == 1).all()
    ids_T, position_T = torch.arange(65).repeat(512), torch.arange(512).repeat_interleave(65)
    routing = router.eval()(torch.zeros(len(ids_T), 8), ids_T=ids_T, position_T=position_T)
    assert routing.load_E.max() <= 1.05 * len(ids_T) / 8
    expert_SV = routing.expert_N.view(512, 65)
    for of_all in (expert_SV.T, expert_SV[:, :64].reshape(64, -1)):  # of each character, and of some positions
        assert max(row.bincount().max() for row in of_all) < 1.6 * 64
    pinned = mixed(torch.tensor([0, 1, 64]), torch.tensor([0, 0, 511])).tolist()  # the same in every process
    assert pinned == [152772505, 648329176, 1907197902]


def test_expert_choice_takes_exactly_its_places_and_its_cut_off_is_an_average_of_the_lowest_taken() -> None:
    router = known(family("expert_choice", cutoff_ema=0.5)).train()
    assert router.cutoff_E.tolist() == [0.5, 0.5]
    assert pairs(routed(router, A, capacity=2)) == [(0, 0), (1, 0), (1, 1), (2, 1)]
    for steps, expected in (([A, B], [0.55, 0.45]), ([A, A], [0.575, 0.425]), ([B, B], [0.5375, 0.4625])):
        router.after_step([routed(router, scores, capacity=2) for scores in steps])
        assert router.cutoff_E.tolist() == pytest.approx(expected)
    near = [[0.54, 0.46], [0.53, 0.47], [0.5376, 0.4624]]
    assert pairs(routed(router.eval(), near, capacity=2)) == [(0, 0), (1, 1), (2, 0)]
    by_row = known(family("expert_choice", cutoff_ema=0.5, **BY_ROW)).train()
    by_row.after_step([routed(by_row, A + B, capacity=2, num_groups=2)])
    assert by_row.cutoff_E.tolist() == pytest.approx([0.55, 0.45])  # the mean over groups, as over micro-batches


def test_a_threshold_is_an_average_of_the_score_that_a_share_of_a_whole_step_exceeds() -> None:
    router, first = known(family("threshold", cutoff_ema=0.5, warmup_steps=1)).train(), [[0.9, 0.1], [0.7, 0.3]]
    second, third = [[0.5, 0.6], [0.2, 0.8]], [[0.3, 0.5], [0.6, 0.55]]
    parts = [routed(router, scores) for scores in (first, second)]
    assert [pairs(part) for part in parts] == [[(0, 0), (1, 1)]] * 2  # in its warm-up half of each micro-batch
    router.after_step(parts)
    assert router.cutoff_E.tolist() == pytest.approx([0.5, 0.3])  # two of four exceed it
    part = routed(router, third)
    assert pairs(part) == [(0, 1), (1, 0), (1, 1)]  # by the cut-offs of before this step
    router.after_step([part])
    assert router.cutoff_E.tolist() == pytest.approx([0.4, 0.4])  # half of 0.5 0.3 and of 0.3 0.5
    two = known(family("threshold", top_k=2)).train()
    assert len(pairs(routed(two, first))) == 4  # all: K / E = 1


@pytest.mark.parametrize(("max_steps", "warmup"), [(None, 100), (1000, 100), (300, 100), (299, 99), (2, 0)])
def test_a_warm_up_is_at_most_a_third_of_the_run_and_the_promise_says_which_part_it_is(
    max_steps: int | None, warmup: int
) -> None:
    router = known(family("threshold"))
    router.prepare(torch.ones(V), max_steps=max_steps)
    promises = []
    for step in (0, warmup):
        router.steps.fill_(step)
        promises.append(router.promise(training=True, limited=False))
    assert [one.sees_future for one in promises] == [one.depends_on_rows for one in promises] == [warmup > 0, False]
    said = [f"in its warm-up (step 0 of {warmup})", f"after its warm-up of {warmup} steps"]
    assert [one.state for one in promises] == (said if warmup else ["", ""])
    assert router.promise(training=False, limited=False).state == ""


# --- Balance by a bias


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_quantile_evens_the_loads_of_frozen_scores(top_k: int) -> None:
    """In 1, 2 or 5 micro-batches of unequal sizes: the bias is that of the step."""
    torch.manual_seed(0)
    x_TD = torch.randn(4096, 8) + torch.linspace(-1.0, 1.0, 8)
    router, ratios = known(family("sigmoid", top_k=top_k), 8, QUANTILE), []
    for step in range(200):
        parts = x_TD.split([4096] if step % 3 == 0 else [1000, 3096] if step % 3 == 1 else [7, 89, 2000, 2000])
        routings = [router(part).detached() for part in parts]
        load_E = torch.stack([routing.load_E for routing in routings]).sum(dim=0)
        ratios.append((load_E.max() / load_E.float().mean()).item())
        router.after_step(routings)
        assert abs(float(router.bias_E.mean())) < 1e-6
    assert ratios[0] > 2.0 / top_k and ratios[5] <= 1.06
    assert router(x_TD).load_E.tolist() == [4096 * top_k // 8] * 8


def test_a_bias_by_quantile_remembers_its_share_of_the_old_one() -> None:
    torch.manual_seed(0)
    router, x_TD = known(family("sigmoid"), 4, BalanceOptions("quantile", ema=0.75)), torch.randn(64, 4)
    router.bias_E.copy_(torch.tensor([0.3, -0.1, -0.2, 0.0]))
    wanted_E = 0.75 * router.bias_E + 0.25 * by_quantile(router.bias_E, x_TD.sigmoid(), 1)
    router.after_step([router(x_TD).detached()])
    torch.testing.assert_close(router.bias_E, wanted_E)


def test_a_bias_by_quantile_is_known_by_hand() -> None:
    """c is a token's smaller score, and c - s_0 is -0.2 -0.4 -0.6 0.0: half of them lie below -0.3."""
    scores_TE = torch.tensor([[0.5, 0.3], [0.6, 0.2], [0.7, 0.1], [0.3, 0.5]])
    bias_E = by_quantile(torch.zeros(2), scores_TE, 1)
    assert bias_E.tolist() == pytest.approx([-0.15, 0.15])  # -0.3 and 0.0, centred
    assert (scores_TE + bias_E).argmax(dim=1).tolist() == [1, 0, 0, 1]


def test_a_bias_by_sign_is_centred() -> None:
    bias_E = by_sign(torch.zeros(4), torch.tensor([5, 1, 1, 1]), 0.1)
    assert bias_E.tolist() == pytest.approx([-0.15, 0.05, 0.05, 0.05])
