"""The paper's equations and every option of the router, against closed forms worked by hand."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from torch import Tensor

from switch_lm.architecture import ModelConfig
from switch_lm.losses import importance_loss, load_balancing_loss, router_z_loss
from switch_lm.metrics import dropped_choices
from switch_lm.module import SwitchModule
from switch_lm.routing import Routing, RoutingRule, expert_capacity, jitter, route
from switch_lm.settings import Config
from switch_lm.switch import SwitchFeedForward
from switch_lm.vocab import Vocabulary

FIVE_TOKENS = [
    [0.7, 0.1, 0.1, 0.1],
    [0.8, 0.1, 0.0, 0.1],
    [0.6, 0.1, 0.1, 0.2],
    [0.5, 0.2, 0.1, 0.2],
    [0.1, 0.1, 0.7, 0.1],
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def logits_of(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs).clamp(min=1e-9).log()


def routed(probs: list[list[float]], capacity: int | None = None, **options: Any) -> Routing:
    """A router call; options of the rule, and of `route`."""
    of_call = {key: options.pop(key) for key in ("num_groups", "training", "selection_bias_E") if key in options}
    return route(logits_of(probs), capacity=capacity, rule=RoutingRule(**options), **of_call)


def kept(routing: Routing) -> list[int]:
    """The tokens whose first choice found a place."""
    return routing.kept_TK[:, 0].nonzero().flatten().tolist()


def worked(probs: list[list[float]], rows: int = 1, **options: Any) -> tuple[SwitchFeedForward, Tensor]:
    """A layer and an input whose every number is known.

    Token t is the t-th unit vector and has the probabilities of row t; expert e multiplies its input by e + 1.
    """
    num_tokens, num_experts = len(probs), len(probs[0])
    of_rule = {key: options.pop(key) for key in vars(RoutingRule()) if key in options}
    defaults = {"router_jitter": 0.0, "capacity_factor": None, "rule": RoutingRule(**of_rule)}
    module = SwitchFeedForward(d_model=num_tokens, d_ff=num_tokens, num_experts=num_experts, **defaults | options)
    with torch.no_grad():
        module.w_router_DE.copy_(logits_of(probs))
        module.experts.w_in_EDF.copy_(torch.eye(num_tokens))
        module.experts.w_out_EFD.copy_(torch.eye(num_tokens) * torch.arange(1, num_experts + 1)[:, None, None])
    return module, torch.eye(num_tokens).view(rows, -1, num_tokens)


def factors(y_BSD: Tensor) -> list[float]:
    """What each token of `worked` was multiplied by; the rest must be 0."""
    y_TD = y_BSD.detach().flatten(0, 1)
    assert torch.equal(y_TD, y_TD.diag().diag())
    return y_TD.diag().tolist()


# --- Equations 1 to 6


def test_equation_1_probabilities_are_the_softmax_over_all_experts_however_many_are_chosen() -> None:
    logits_TE = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    for top_k in (1, 2, 3):
        probs_TE = route(logits_TE, capacity=1, rule=RoutingRule(top_k=top_k)).probs_TE
        by_hand = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in logits_TE.tolist()]
        assert probs_TE.tolist() == [pytest.approx(row, rel=1e-6) for row in by_hand]


def test_equation_2_the_output_is_probability_times_expert() -> None:
    module, x_BSD = worked(FIVE_TOKENS)
    assert factors(module(x_BSD)[0]) == pytest.approx([0.7 * 1, 0.8 * 1, 0.6 * 1, 0.5 * 1, 0.7 * 3])


def test_equation_2_several_choices_are_added_each_with_its_raw_probability() -> None:
    module, x_BSD = worked([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], top_k=2)
    assert factors(module(x_BSD)[0]) == pytest.approx([0.5 * 1 + 0.3 * 2, 0.6 * 3 + 0.3 * 2])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_equation_3_has_no_number_of_choices_in_it(top_k: int) -> None:
    module, x_BSD = worked([[0.1, 0.2, 0.3, 0.4]] * 10, top_k=top_k, capacity_factor=1.25)
    assert module(x_BSD)[1].capacity == 4  # ceil(1.25 x 10 / 4)


@pytest.mark.parametrize(("factor", "dropped"), [(1.0, 8), (1.5, 4), (2.0, 0)])
def test_equation_3_two_even_choices_a_token_need_a_factor_of_two(factor: float, dropped: int) -> None:
    even = [[0.6, 0.4, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.6, 0.4], [0.4, 0.0, 0.0, 0.6]] * 2
    module, x_BSD = worked(even, top_k=2, capacity_factor=factor)
    assert int(dropped_choices(module(x_BSD)[1])) == dropped


SEVEN_ONE_ONE_ONE = [[0.49, 0.17, 0.17, 0.17]] * 7 + [
    [0.19, 0.41, 0.20, 0.20],
    [0.19, 0.20, 0.41, 0.20],
    [0.19, 0.20, 0.20, 0.41],
]


def test_equations_4_5_and_6_for_the_tables_of_the_first_document() -> None:
    routing = routed(SEVEN_ONE_ONE_ONE)
    assert routing.fraction_E.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert routing.mean_prob_E.tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert float(load_balancing_loss(routing)) == pytest.approx(1.36)
    even = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]]
    assert float(load_balancing_loss(routed(even))) == pytest.approx(1.0)


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("overflow", ["drop", "reroute", "passthrough"])
def test_equation_5_counts_what_was_selected_whatever_then_becomes_of_it(capacity: int | None, overflow: str) -> None:
    routing = routed(SEVEN_ONE_ONE_ONE, capacity, overflow=overflow)
    assert routing.load_E.tolist() == [7, 1, 1, 1]
    assert float(load_balancing_loss(routing)) == pytest.approx(1.36)


def test_equation_5_is_a_share_of_choices_and_adds_up_to_one() -> None:
    routing = routed(FIVE_TOKENS, top_k=2)
    assert float(routing.fraction_E.sum()) == pytest.approx(1.0)
    assert routing.load_E.sum() == 10
    assert float(load_balancing_loss(routed([[0.25] * 4] * 6, top_k=3))) == pytest.approx(1.0)  # uniform: 1 for any K


# --- The queue


def test_five_tokens_worked_by_hand() -> None:
    routing = routed(FIVE_TOKENS, expert_capacity(5, 4, 1.0))
    assert routing.capacity == 2
    assert routing.load_E.tolist() == [4, 0, 1, 0]
    assert routing.kept_E.tolist() == [2, 0, 1, 0]
    assert kept(routing) == [0, 1, 4]
    assert routing.expert_TK.flatten().tolist() == [0, 0, 0, 0, 2]  # a dropped token keeps its expert
    assert routing.gate_TK.flatten().tolist() == pytest.approx([0.7, 0.8, 0.6, 0.5, 0.7])  # and its gate
    assert int(dropped_choices(routing)) == 2


def test_earlier_rows_come_first_then_earlier_positions() -> None:
    module, x_BSD = worked([[0.9, 0.1]] * 6, rows=2, capacity_factor=4 / 3)
    assert kept(module(x_BSD)[1]) == [0, 1, 2, 3]


def test_exactly_the_capacity_is_kept_and_not_one_less() -> None:
    for capacity in range(1, 7):
        assert kept(routed([[0.9, 0.1]] * 6, capacity)) == list(range(capacity))


CROSSED = [[0.6, 0.4], [0.4, 0.6]]  # each token's first choice is the other's second


def test_in_token_order_a_token_takes_all_its_places_before_the_next_one() -> None:
    assert routed(CROSSED, 1, top_k=2).kept_TK.tolist() == [[True, True], [False, False]]


def test_in_choice_order_first_choices_take_their_places_before_any_second_one() -> None:
    assert routed(CROSSED, 1, top_k=2, queue_order="choice").kept_TK.tolist() == [[True, False], [True, False]]


def test_by_probability_the_surest_tokens_are_kept_and_of_equals_the_first() -> None:
    sure = [[p, 1 - p] for p in (0.6, 0.8, 0.7, 0.9, 0.8, 0.8)]
    orders = {capacity: kept(routed(sure, capacity, drop_order="probability")) for capacity in (1, 2, 3, 5)}
    assert orders == {1: [3], 2: [1, 3], 3: [1, 3, 4], 5: [1, 2, 3, 4, 5]}


def test_at_random_every_token_is_kept_equally_often_in_training() -> None:
    groups, tokens, capacity = 3000, 5, 2
    routing = routed([[0.9, 0.1]] * (groups * tokens), capacity, num_groups=groups, drop_order="random", training=True)
    share = routing.kept_TK.view(groups, tokens).float().mean(dim=0)
    assert share.tolist() == [pytest.approx(capacity / tokens, abs=5 * math.sqrt(0.4 * 0.6 / groups))] * tokens
    assert (routing.kept_TK.view(groups, tokens).sum(dim=1) == capacity).all()


def test_in_evaluation_a_random_order_is_that_of_position() -> None:
    assert kept(routed([[0.9, 0.1]] * 20, 4, drop_order="random")) == [0, 1, 2, 3]


@pytest.mark.parametrize(("group", "independent"), [("sequence", True), ("batch", False)])
def test_only_with_a_capacity_of_its_own_a_row_does_not_depend_on_the_others(group: str, independent: bool) -> None:
    crowd, away = [[0.9, 0.1]] * 4, [[0.1, 0.9]] * 4
    layers = [worked(row + crowd, rows=2, capacity_factor=1.0, capacity_group=group) for row in (crowd, away)]
    after_a_crowd, after_none = (module(x_BSD)[1] for module, x_BSD in layers)
    assert torch.equal(after_a_crowd.kept_TK[4:], after_none.kept_TK[4:]) == independent
    assert after_a_crowd.capacity == (2 if independent else 4)
    assert kept(after_a_crowd) == ([0, 1, 4, 5] if independent else [0, 1, 2, 3])


# --- Overflow


def test_a_dropped_choice_adds_nothing_and_leaves_the_other_gates_as_they_were() -> None:
    for renormalize in (False, True):
        probs = [[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]]
        module, x_BSD = worked(probs, top_k=2, capacity_factor=1.0, renormalize_gates=renormalize)
        y_BSD, routing = module(x_BSD)  # one place an expert: the second token finds none, the third its second
        assert routing.kept_TK.tolist() == [[True, True], [False, False], [False, True]]
        whole = 0.8 if renormalize else 1.0
        assert factors(y_BSD) == pytest.approx([(0.5 * 1 + 0.3 * 2) / whole, 0.0, 0.3 * 3 / whole])


def test_passthrough_gives_a_dropped_choice_gate_times_the_input_of_the_layer() -> None:
    module, x_BSD = worked(FIVE_TOKENS, capacity_factor=1.0, overflow="passthrough")
    y_BSD, routing = module(x_BSD)
    assert kept(routing) == [0, 1, 4]
    assert factors(y_BSD) == pytest.approx([0.7, 0.8, 0.6, 0.5, 0.7 * 3])  # expert 0 is the identity as well
    module, x_BSD = worked([[0.3, 0.7]] * 4, capacity_factor=1.0, overflow="passthrough")
    assert factors(module(x_BSD)[0]) == pytest.approx([0.7 * 2, 0.7 * 2, 0.7, 0.7])


def test_reroute_tries_the_next_most_probable_expert_and_uses_its_probability() -> None:
    module, x_BSD = worked(FIVE_TOKENS, capacity_factor=1.0, overflow="reroute")
    y_BSD, routing = module(x_BSD)
    assert routing.expert_TK.flatten().tolist() == [0, 0, 0, 0, 2]  # selected
    assert routing.assigned_TK.flatten().tolist() == [0, 0, 3, 1, 2]  # of equals the first
    assert routing.kept_E.tolist() == [2, 1, 1, 1]
    assert factors(y_BSD) == pytest.approx([0.7, 0.8, 0.2 * 4, 0.2 * 2, 0.7 * 3])


def test_reroute_gives_a_place_to_those_who_selected_the_expert_before_those_sent_on() -> None:
    probs = [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]  # the second is sent on; expert 1 is the third's
    assert routed(probs, 1, overflow="reroute").assigned_TK.flatten().tolist() == [0, 2, 1]


@pytest.mark.parametrize("drop_order", ["position", "random", "probability"])
def test_reroute_finds_a_place_for_every_token_while_there_is_one(drop_order: str) -> None:
    torch.manual_seed(0)
    logits_TE = 5 * torch.randn(64, 8) + torch.linspace(9, 0, 8)
    for capacity, placed in ((8, 64), (7, 56), (1, 8), (20, 64)):
        rule = RoutingRule(overflow="reroute", drop_order=drop_order)
        routing = route(logits_TE, capacity=capacity, rule=rule, training=True)
        assert int(routing.kept_TK.sum()) == placed
        if placed == 8 * capacity:
            assert routing.kept_E.tolist() == [capacity] * 8


# --- Gates


def test_renormalised_gates_add_up_to_one_and_raw_ones_do_not() -> None:
    assert routed(FIVE_TOKENS, top_k=2, renormalize_gates=True).gate_TK.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert routed(FIVE_TOKENS, top_k=2).gate_TK.sum(1).tolist() == pytest.approx([0.8, 0.9, 0.8, 0.7, 0.8])


@pytest.mark.parametrize("scale", ["probability", "straight_through"])
def test_a_gate_is_p_with_its_gradient_or_one_with_the_gradient_of_log_p(scale: str) -> None:
    logits_TE = logits_of(FIVE_TOKENS[:1]).requires_grad_()
    gate = route(logits_TE, capacity=None, rule=RoutingRule(gate_scale=scale)).gate_TK.sum()
    gate.backward()
    log_p = [1 - 0.7, -0.1, -0.1, -0.1]  # d log p_0 / d logits
    assert logits_TE.grad is not None
    if scale == "probability":
        assert gate.item() == pytest.approx(0.7)
        assert logits_TE.grad[0].tolist() == pytest.approx([0.7 * value for value in log_p])
    else:
        assert gate.item() == 1.0
        assert logits_TE.grad[0].tolist() == pytest.approx(log_p)


def test_a_straight_through_gate_is_one_for_an_expert_of_no_probability() -> None:
    logits_TE = torch.tensor([[300.0, 0.0]], requires_grad=True)
    gate_TK = route(logits_TE, capacity=None, rule=RoutingRule(top_k=2, gate_scale="straight_through")).gate_TK
    gate_TK.sum().backward()
    assert logits_TE.grad is not None and logits_TE.grad.isfinite().all()
    assert gate_TK.isfinite().all()


# --- Selection


def test_a_sampled_expert_comes_up_as_often_as_it_is_probable_and_only_in_training() -> None:
    probs, draws = [0.5, 0.3, 0.15, 0.05], 40_000
    drawn = routed([probs] * draws, selection="sample", training=True)
    for share, p in zip(drawn.fraction_E.tolist(), probs, strict=True):
        assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / draws))
    assert torch.equal(drawn.gate_TK, drawn.probs_TE.gather(1, drawn.expert_TK))
    assert routed([probs] * 100, selection="sample").load_E.tolist() == [100, 0, 0, 0]


def test_several_experts_are_sampled_one_after_the_other_without_replacement() -> None:
    p, draws = [0.5, 0.3, 0.2], 40_000
    drawn = routed([p] * draws, selection="sample", top_k=2, training=True).expert_TK
    pairs = Counter(map(tuple, drawn.tolist()))
    assert set(pairs) == set(permutations(range(3), 2))
    for (first, second), count in pairs.items():
        share = p[first] * p[second] / (1 - p[first])
        assert count / draws == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / draws))


def test_a_selection_bias_moves_the_choice_and_neither_gate_nor_mean_probability() -> None:
    probs = [[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]
    routing = routed(probs, selection_bias_E=torch.tensor([0.0, 0.3]))
    assert routing.expert_TK.flatten().tolist() == [1, 0, 1]  # 0.4 + 0.3 > 0.6, but 0.1 + 0.3 < 0.9
    assert routing.gate_TK.flatten().tolist() == pytest.approx([0.4, 0.9, 0.8])
    assert routing.fraction_E.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert routing.mean_prob_E.tolist() == pytest.approx([1.7 / 3, 1.3 / 3])


def test_a_selection_bias_is_the_one_buffer_and_no_forward_pass_moves_it() -> None:
    module, x_BSD = worked(FIVE_TOKENS, selection_bias=True)
    assert [name for name, _ in module.named_buffers()] == ["selection_bias_E"]
    assert list(worked(FIVE_TOKENS)[0].named_buffers()) == []
    module(x_BSD)
    assert torch.equal(module.state_dict()["selection_bias_E"], torch.zeros(4))


def test_equal_scores_go_to_the_first_expert() -> None:
    assert routed([[0.25] * 4] * 3).expert_TK.flatten().tolist() == [0, 0, 0]


# --- Noise, and the other parts of a layer


def test_jitter_is_uniform_within_epsilon_and_leaves_its_input_alone() -> None:
    x_TD = torch.full((1000, 100), 2.0)
    ratio_TD = jitter(x_TD, 0.1) / 2.0
    assert (x_TD == 2.0).all()
    assert 0.9 <= ratio_TD.min() < 0.901 and 1.099 < ratio_TD.max() <= 1.1
    assert ratio_TD.mean().item() == pytest.approx(1.0, abs=5 * 0.1 / math.sqrt(3 * 1e5))
    assert ratio_TD.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)


def test_jitter_is_one_percent_by_default() -> None:
    assert ModelConfig().router_jitter == 0.01
    assert SwitchFeedForward(d_model=2, d_ff=2, num_experts=2).router_jitter == 0.01


def test_input_dropout_reaches_the_router_only_and_only_in_training() -> None:
    module, x_BSD = worked([[0.2, 0.8]] * 400, router_input_dropout=0.25)
    y_BSD, routing = module(x_BSD)
    uniform, sharper = [0.5, 0.5], logits_of([[0.2, 0.8]]).div(0.75).softmax(-1)[0].tolist()
    blind_T = routing.probs_TE[:, 0] == 0.5
    assert routing.probs_TE[blind_T].tolist() == [uniform] * int(blind_T.sum())
    assert routing.probs_TE[~blind_T][0].tolist() == pytest.approx(sharper)
    assert torch.allclose(routing.probs_TE[~blind_T], routing.probs_TE[~blind_T][0])
    assert blind_T.float().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 400))
    clean = routing.gate_TK[:, 0] * (routing.expert_TK[:, 0] + 1)  # gate x what the expert makes of a clean input
    assert factors(y_BSD) == pytest.approx(clean.tolist())
    assert torch.equal(module.eval()(x_BSD)[1].logits_TE, logits_of([[0.2, 0.8]] * 400))


@pytest.mark.parametrize("capacity_factor", [None, 2.0])
def test_expert_dropout_removes_and_scales_hidden_units_and_only_in_training(capacity_factor: float | None) -> None:
    module, x_BSD = worked([[0.1, 0.9]] * 300, expert_dropout=0.4, capacity_factor=capacity_factor)
    values = torch.tensor(factors(module(x_BSD)[0]))
    lost = values == 0
    assert torch.allclose(values[~lost], torch.tensor(0.9 * 2 / 0.6))
    assert lost.float().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.4 * 0.6 / 300))
    assert factors(module.eval()(x_BSD)[0]) == pytest.approx([0.9 * 2] * 300)


def test_a_shared_expert_is_added_for_every_token_dropped_or_not_and_has_no_gate() -> None:
    module, x_BSD = worked(FIVE_TOKENS, capacity_factor=1.0, shared_expert=True)
    assert module.shared is not None
    with torch.no_grad():
        module.shared.w_in.weight.copy_(torch.eye(5))
        module.shared.w_out.weight.copy_(10 * torch.eye(5))
    assert factors(module(x_BSD)[0]) == pytest.approx([10 + 0.7, 10 + 0.8, 10.0, 10.0, 10 + 0.7 * 3])


def test_the_capacity_of_evaluation_is_its_own() -> None:
    module, x_BSD = worked([[0.7, 0.3]] * 8, capacity_factor=0.5, eval_capacity_factor=2.0)
    assert (module(x_BSD)[1].capacity, module.eval()(x_BSD)[1].capacity) == (2, 8)
    assert ModelConfig().eval_capacity_factor is None


@pytest.mark.parametrize(("every", "switch"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2])])
def test_every_nth_block_has_a_switch_layer(every: int, switch: list[int]) -> None:
    config = ModelConfig(num_layers=5, switch_every=every)
    assert [block for block in range(5) if config.is_switch(block)] == switch
    assert config.num_switch_layers == len(switch)


# --- The other losses


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_summed_exponentials() -> None:
    logits_TE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-2.0, -2.0, -2.0, -2.0]], requires_grad=True)
    z = [1 + math.log(4), -2 + math.log(4)]
    loss = router_z_loss(route(logits_TE, capacity=None))
    assert loss.item() == pytest.approx((z[0] ** 2 + z[1] ** 2) / 2)
    (grad_TE,) = torch.autograd.grad(loss, logits_TE)
    assert grad_TE.tolist() == [pytest.approx([value / 4] * 4) for value in z]  # 2 z p / T
    assert float(router_z_loss(routed(FIVE_TOKENS))) == pytest.approx(0.0, abs=1e-10)  # logits are log p


def test_the_importance_loss_is_the_squared_variation_of_summed_gates() -> None:
    summed = [0.7 + 0.8 + 0.6 + 0.5, 0.0, 0.7, 0.0]
    mean = sum(summed) / 4
    by_hand = sum((value - mean) ** 2 for value in summed) / 4 / mean**2
    assert float(importance_loss(routed(FIVE_TOKENS))) == pytest.approx(by_hand)
    even = [[0.7, 0.3], [0.3, 0.7]]
    assert float(importance_loss(routed(even))) == pytest.approx(0.0, abs=1e-12)
    assert float(importance_loss(routed([[0.9, 0.1]] * 3))) == pytest.approx(1.0)  # all on one of E: E - 1


def test_the_total_is_the_language_loss_and_each_other_loss_times_its_weight() -> None:
    config = Config(model=tiny_model().config, alpha=0.5, z_loss=0.25, importance=0.125)
    module = SwitchModule(config, Vocabulary.of(TEXT), corpus_sha256="", precision="fp32")
    ids = torch.arange(48).view(3, 16) % 7
    losses = module._losses(ids, (ids + 1) % 7)
    parts = losses.language + 0.5 * losses.balance + 0.25 * losses.router_z + 0.125 * losses.importance
    assert losses.total.item() == pytest.approx(parts.item())
    for loss, of_layer in (
        (losses.balance, load_balancing_loss),
        (losses.router_z, router_z_loss),
        (losses.importance, importance_loss),
    ):
        assert loss.item() > 0
        assert loss.item() == pytest.approx(sum(of_layer(routing).item() for routing in losses.routings))


# --- Causality: whether a token is dropped is an output


LEAKS: dict[str, tuple[dict[str, Any], bool]] = {  # may what follows a token change what it gets?
    "position": ({"drop_order": "position"}, False),
    "position, by row": ({"drop_order": "position", "capacity_group": "sequence"}, False),
    "top 2, token order": ({"top_k": 2}, False),
    "sample": ({"selection": "sample"}, False),
    "random": ({"drop_order": "random"}, True),
    "probability": ({"drop_order": "probability"}, True),
    "reroute": ({"overflow": "reroute"}, True),
    "top 2, choice order": ({"top_k": 2, "queue_order": "choice"}, True),
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_rules_that_look_ahead_are_those_said_to(name: str) -> None:
    """By intervention: the second half of the last row changes, with everything else and all noise as it was."""
    options, leaks = LEAKS[name]
    torch.manual_seed(0)
    module = SwitchFeedForward(
        d_model=8, d_ff=8, num_experts=4, capacity_factor=0.75, rule=RoutingRule(**options), init_scale=1.0
    )
    moved = 0.0
    for seed in range(20):
        before_BSD = torch.randn(2, 12, 8)
        after_BSD = before_BSD.clone()
        after_BSD[1, 6:] = torch.randn(6, 8)
        torch.manual_seed(seed)
        y_before, _ = module(before_BSD)
        torch.manual_seed(seed)
        y_after, _ = module(after_BSD)
        moved = max(moved, (y_after[1, :6] - y_before[1, :6]).abs().max().item())
    assert (moved > 1e-2) if leaks else (moved < 1e-5)
