"""Noise from shared random bits: uniform, unbiased, the same in the gradient, and off in evaluation."""

from __future__ import annotations

import pytest
import torch

from switch_lm.routers.noise import Dropout, random_bytes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_bytes_are_uniform_and_neighbours_are_independent() -> None:
    drawn = random_bytes(torch.empty(1001, 257)).flatten().double()  # no multiple of the 8 of a draw
    counts = torch.bincount(drawn.long(), minlength=256).double()
    mean = len(drawn) / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 5 * (2 * 255) ** 0.5  # chi squared, five deviations
    for lag in (1, 7, 8, 257):
        pair = torch.stack([drawn[lag:], drawn[:-lag]])
        assert abs(pair.corrcoef()[0, 1].item()) < 5 / len(drawn) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_zeroes_its_rate_and_scales_the_rest_so_that_the_mean_does_not_change(rate: float) -> None:
    x, calls = torch.ones(20, 100), 1000
    y = torch.stack([Dropout(rate)(x) for _ in range(calls)])
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    # An element's chance is one of two neighbouring 256ths, the same for all of a call.
    deviation = (rate * (1 - rate) / y.numel() + 1 / (4 * 256**2 * calls)) ** 0.5
    assert (y == 0).double().mean().item() == pytest.approx(rate, abs=5 * deviation)
    assert y.mean().item() == pytest.approx(1.0, abs=5 * deviation / (1 - rate))


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.ones(64, 100, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach())


def test_each_call_draws_new_noise_and_a_seed_repeats_it() -> None:
    x, dropout = torch.ones(10, 100), Dropout(0.5)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_a_compiled_module_draws_the_same_noise() -> None:
    x, dropout = torch.ones(10, 100), Dropout(0.5)
    compiled = torch.compile(dropout, backend="aot_eager")
    want = dropout(x)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), want)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_drawn_in_evaluation_or_at_rate_zero(rate: float, training: bool) -> None:
    x, before = torch.randn(3, 5), torch.get_rng_state()
    assert Dropout(rate).train(training)(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rate_near_one_keeps_some_elements() -> None:
    y = Dropout(0.999)(torch.ones(100, 1000))
    assert y.max().item() == pytest.approx(1000.0)
