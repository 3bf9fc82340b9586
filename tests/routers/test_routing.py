"""Capacity, slots, and the balance loss of a routing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import REPEATABLE
from worked import route, routed

from switch_lm.measure.metrics import router_entropy
from switch_lm.model.losses import summed
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import expert_capacity
from switch_lm.routers.queueing import queue_slots


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "capacity"),
    [
        (100, 4, 1.0, 25),
        (100, 10, 1.1, 11),  # in floats ceil(1.1 * 100 / 10) is 12
        (5, 4, 1.0, 2),
        (1, 64, 1.0, 1),  # never 0: that would drop every token
        (39, 64, 0.01, 1),
        (10, 2, 100.0, 10),  # never more than there are tokens
        (8192, 8, 1.25, 1280),
    ],
)
def test_capacity_is_factor_times_tokens_over_experts_rounded_up_exactly(
    tokens: int, experts: int, factor: float, capacity: int
) -> None:
    assert expert_capacity(tokens, experts, factor) == capacity


def test_no_capacity_factor_means_no_limit() -> None:
    assert expert_capacity(100, 4, None) is None


@settings(REPEATABLE)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_a_slot_counts_the_earlier_choices_of_the_same_expert(experts: list[int]) -> None:
    queue = queue_slots(torch.tensor([experts]), 6)
    assert queue.slot_GN[0].tolist() == [experts[:n].count(e) for n, e in enumerate(experts)]
    assert queue.load_GE[0].tolist() == [experts.count(e) for e in range(6)]


@pytest.mark.parametrize(
    ("probs", "top_k", "loss"),
    [
        ([[0.25] * 4] * 12, 1, 1.0),  # uniform: 1, for any number of choices
        ([[0.25] * 4] * 6, 3, 1.0),
        ([[0.7 if e == t else 0.1 for e in range(4)] for t in range(4)], 1, 1.0),  # even
        ([[0.0, 0.0, 1.0, 0.0]] * 9, 1, 4.0),  # all surely to one expert: E
        ([[0.51, 0.49]] * 60 + [[0.01, 0.99]] * 40, 1, 2 * (0.6 * 0.31 + 0.4 * 0.69)),  # it may be below 1
    ],
)
def test_the_balance_loss_is_the_closed_form(probs: list[list[float]], top_k: int, loss: float) -> None:
    assert float(load_balancing_loss(routed(probs, top_k=top_k))) == pytest.approx(loss)


def test_equal_scores_go_to_the_first_expert() -> None:
    assert routed([[0.25] * 4] * 3).expert_TK.flatten().tolist() == [0, 0, 0]


def test_only_the_mean_probability_has_a_gradient() -> None:
    logits = torch.randn(30, 4, requires_grad=True)
    routing = route(logits, capacity=None)
    assert not routing.fraction_E.requires_grad
    (grad,) = torch.autograd.grad(load_balancing_loss(routing), logits)
    probs = logits.detach().softmax(-1)
    f = routing.fraction_E
    expected = 4 / 30 * probs * (f - (probs * f).sum(-1, keepdim=True))  # d(E sum f P)/d logits by hand
    assert torch.allclose(grad, expected, atol=1e-7)


def test_a_dense_model_has_no_balance_loss() -> None:
    assert float(summed(load_balancing_loss, [])) == 0.0


def test_entropy_of_a_uniform_router_is_the_logarithm_of_the_number_of_experts() -> None:
    assert float(router_entropy(routed([[0.125] * 8] * 3))) == pytest.approx(math.log(8))
