"""Intervals and pairs, against closed forms."""

from __future__ import annotations

import math

import pytest

from switch_lm.stats.intervals import Estimate, estimate, paired, t_quantile


def test_the_quantile_has_its_closed_forms_and_those_of_the_tables() -> None:
    assert t_quantile(1, 0.95) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-12)  # Cauchy
    assert t_quantile(2, 0.95) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    assert t_quantile(10_000) == pytest.approx(1.96020, abs=1e-5)  # nearly normal
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)
    assert [round(t_quantile(freedom), 3) for freedom in (3, 9, 20)] == [3.182, 2.262, 2.086]


def test_an_interval_is_the_mean_plus_minus_t_times_its_standard_error() -> None:
    result = estimate([1.0, 2.0, 3.0])  # deviation 1
    assert result is not None
    assert (result.mean, result.count, result.deviation) == (2.0, 3, 1.0)
    half = 4.302652729911275 / math.sqrt(3)
    assert result.low == pytest.approx(2.0 - half) and result.high == pytest.approx(2.0 + half)
    assert not result.resolved  # -0.48 to 4.48


def test_one_value_has_no_interval_and_is_not_resolved() -> None:
    assert estimate([7.0]) == Estimate(7.0, 1)
    assert not Estimate(7.0, 1).resolved
    assert estimate([]) is None


def test_a_pair_is_of_equal_seeds_and_a_seed_of_one_side_or_an_unknown_one_is_left_out() -> None:
    result = paired({0: 1.0, 1: 2.0, 2: 9.0, None: 5.0}, {0: 1.5, 1: 2.5, 3: 0.0, None: 9.0})
    assert result is not None and result.resolved
    assert (result.mean, result.count, result.low, result.high) == (-0.5, 2, -0.5, -0.5)
    assert paired({0: 1.0, None: 1.0}, {1: 1.0, None: 1.0}) is None


def test_pairing_resolves_what_the_spread_over_seeds_hides() -> None:
    result = paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.11, 1: 2.1, 2: 3.09})
    assert result is not None and result.resolved and result.mean == pytest.approx(-0.1)
