"""The paper's equations, the queue and overflow, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from worked import FIVE_TOKENS, factors, kept, route, routed, worked

from switch_lm.measure.metrics import dropped_choices
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import TopKOptions, expert_capacity


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- Equations 1 to 6


def test_equation_1_probabilities_are_the_softmax_over_all_experts_for_any_number_of_choices() -> None:
    logits_TE = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
    for top_k in (1, 2, 3):
        probs_TE = route(logits_TE, capacity=1, rule=TopKOptions(top_k=top_k)).probs_TE
        by_hand = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in logits_TE.tolist()]
        assert probs_TE.tolist() == [pytest.approx(row, rel=1e-6) for row in by_hand]


def test_equation_2_the_output_is_probability_times_expert() -> None:
    module, x_BSD = worked(FIVE_TOKENS)
    assert factors(module(x_BSD)[0]) == pytest.approx([0.7 * 1, 0.8 * 1, 0.6 * 1, 0.5 * 1, 0.7 * 3])


def test_equation_2_several_choices_are_added_each_with_its_raw_probability() -> None:
    module, x_BSD = worked([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], top_k=2)
    assert factors(module(x_BSD)[0]) == pytest.approx([0.5 * 1 + 0.3 * 2, 0.6 * 3 + 0.3 * 2])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_equation_3_does_not_contain_the_number_of_choices(top_k: int) -> None:
    module, x_BSD = worked([[0.1, 0.2, 0.3, 0.4]] * 10, top_k=top_k, capacity_factor=1.25)
    assert module(x_BSD)[1].capacity == 4  # ceil(1.25 x 10 / 4)


@pytest.mark.parametrize(("factor", "dropped"), [(1.0, 8), (1.5, 4), (2.0, 0)])
def test_equation_3_two_even_choices_per_token_need_a_factor_of_two(factor: float, dropped: int) -> None:
    even = [[0.6, 0.4, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.6, 0.4], [0.4, 0.0, 0.0, 0.6]] * 2
    module, x_BSD = worked(even, top_k=2, capacity_factor=factor)
    assert int(dropped_choices(module(x_BSD)[1])) == dropped


SEVEN_ONE_ONE_ONE = [[0.49, 0.17, 0.17, 0.17]] * 7 + [
    [0.19, 0.41, 0.20, 0.20],
    [0.19, 0.20, 0.41, 0.20],
    [0.19, 0.20, 0.20, 0.41],
]


@pytest.mark.parametrize("capacity", [None, 1, 3])
@pytest.mark.parametrize("overflow", ["drop", "reroute", "passthrough"])
def test_equations_4_5_and_6_count_selected_choices_dropped_or_not(capacity: int | None, overflow: str) -> None:
    routing = routed(SEVEN_ONE_ONE_ONE, capacity, overflow=overflow)
    assert routing.load_E.tolist() == [7, 1, 1, 1]
    assert routing.fraction_E.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert routing.mean_prob_E.tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert float(load_balancing_loss(routing)) == pytest.approx(1.36)


def test_equation_5_is_a_share_of_choices_and_adds_up_to_one() -> None:
    routing = routed(FIVE_TOKENS, top_k=2)
    assert float(routing.fraction_E.sum()) == pytest.approx(1.0)
    assert routing.load_E.sum() == 10


# --- The queue


def test_five_tokens_worked_out_by_hand() -> None:
    routing = routed(FIVE_TOKENS, expert_capacity(5, 4, 1.0))
    assert routing.capacity == 2
    assert routing.load_E.tolist() == [4, 0, 1, 0]
    assert routing.kept_E.tolist() == [2, 0, 1, 0]
    assert kept(routing) == [0, 1, 4]
    assert routing.expert_TK.flatten().tolist() == [0, 0, 0, 0, 2]  # a dropped token keeps its expert
    assert routing.gate_TK.flatten().tolist() == pytest.approx([0.7, 0.8, 0.6, 0.5, 0.7])  # and its gate
    assert int(dropped_choices(routing)) == 2


def test_exactly_the_capacity_is_kept() -> None:
    for capacity in range(1, 7):
        assert kept(routed([[0.9, 0.1]] * 6, capacity)) == list(range(capacity))


CROSSED = [[0.6, 0.4], [0.4, 0.6]]  # each token's first choice is the other's second


def test_in_token_order_a_token_takes_all_its_slots_before_the_next_one() -> None:
    assert routed(CROSSED, 1, top_k=2).kept_TK.tolist() == [[True, True], [False, False]]


def test_in_choice_order_first_choices_take_their_slots_before_any_second_choice() -> None:
    assert routed(CROSSED, 1, top_k=2, queue_order="choice").kept_TK.tolist() == [[True, False], [True, False]]


def test_by_probability_the_most_certain_tokens_are_kept_and_the_first_of_equal_ones() -> None:
    sure = [[p, 1 - p] for p in (0.6, 0.8, 0.7, 0.9, 0.8, 0.8)]
    orders = {capacity: kept(routed(sure, capacity, drop_order="probability")) for capacity in (1, 2, 3, 5)}
    assert orders == {1: [3], 2: [1, 3], 3: [1, 3, 4], 5: [1, 2, 3, 4, 5]}


def test_at_random_every_token_is_kept_equally_often_in_training() -> None:
    groups, tokens, capacity = 3000, 5, 2
    routing = routed([[0.9, 0.1]] * (groups * tokens), capacity, num_groups=groups, drop_order="random", training=True)
    share = routing.kept_TK.view(groups, tokens).float().mean(dim=0)
    assert share.tolist() == [pytest.approx(capacity / tokens, abs=5 * math.sqrt(0.4 * 0.6 / groups))] * tokens
    assert (routing.kept_TK.view(groups, tokens).sum(dim=1) == capacity).all()


def test_in_evaluation_the_random_order_is_that_of_position() -> None:
    assert kept(routed([[0.9, 0.1]] * 20, 4, drop_order="random")) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("group", "capacity", "first"),
    [("sequence", 3, [0, 1, 2, 4, 5, 6]), ("batch", 5, [0, 1, 2, 3, 4])],  # earlier rows first, then earlier positions
)
def test_a_row_is_independent_of_the_others_only_with_a_capacity_of_its_own(
    group: str, capacity: int, first: list[int]
) -> None:
    crowd, away = [[0.9, 0.1]] * 4, [[0.1, 0.9]] * 4
    layers = [worked(row + crowd, rows=2, capacity_factor=1.25, capacity_group=group) for row in (crowd, away)]
    after_a_crowd, after_none = (module(x_BSD)[1] for module, x_BSD in layers)
    assert torch.equal(after_a_crowd.kept_TK[4:], after_none.kept_TK[4:]) == (group == "sequence")
    assert after_a_crowd.capacity == capacity
    assert kept(after_a_crowd) == first


# --- Overflow


def test_a_dropped_choice_adds_nothing_and_leaves_the_other_gates_as_they_were() -> None:
    for renormalize in (False, True):
        probs = [[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]]
        module, x_BSD = worked(probs, top_k=2, capacity_factor=1.0, renormalize_gates=renormalize)
        y_BSD, routing = module(
            x_BSD
        )  # one slot per expert: the second token gets none, the third gets its second choice
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


def test_reroute_gives_slots_to_those_that_selected_the_expert_before_rerouted_ones() -> None:
    probs = [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]  # the second is sent on; expert 1 is the third's
    assert routed(probs, 1, overflow="reroute").assigned_TK.flatten().tolist() == [0, 2, 1]


@pytest.mark.parametrize("drop_order", ["position", "random", "probability"])
def test_reroute_finds_a_slot_for_every_token_while_there_is_one(drop_order: str) -> None:
    torch.manual_seed(0)
    logits_TE = 5 * torch.randn(64, 8) + torch.linspace(9, 0, 8)
    for capacity, placed in ((8, 64), (7, 56), (1, 8), (20, 64)):
        rule = TopKOptions(top_k=1, overflow="reroute", drop_order=drop_order)
        routing = route(logits_TE, capacity=capacity, rule=rule, training=True)
        assert int(routing.kept_TK.sum()) == placed
        if placed == 8 * capacity:
            assert routing.kept_E.tolist() == [capacity] * 8
