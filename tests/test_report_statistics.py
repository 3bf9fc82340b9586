"""Intervals, pairs, Pareto sets and crossings, against tables and closed forms."""

from __future__ import annotations

import math

import pytest

from switch_lm.stats.intervals import Estimate, Point, crossing, estimate, paired, pareto, t_quantile

# Two-sided 95 % points of Student's t, as printed in any table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
TABLE |= {15: 2.131, 19: 2.093, 20: 2.086, 29: 2.045, 30: 2.042}


@pytest.mark.parametrize(("freedom", "printed"), TABLE.items())
def test_the_quantile_is_that_of_the_tables(freedom: int, printed: float) -> None:
    assert t_quantile(freedom) == pytest.approx(printed, abs=5.001e-4)


def test_the_quantile_has_its_closed_forms() -> None:
    assert t_quantile(1, 0.95) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-12)  # Cauchy
    assert t_quantile(2, 0.95) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    assert t_quantile(10_000) == pytest.approx(1.96020, abs=1e-5)  # nearly normal
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)


def test_an_interval_is_the_mean_plus_minus_t_times_its_standard_error() -> None:
    found = estimate([1.0, 2.0, 3.0])  # deviation 1
    assert found is not None
    assert (found.mean, found.count, found.deviation) == (2.0, 3, 1.0)
    half = 4.302652729911275 / math.sqrt(3)
    assert found.low == pytest.approx(2.0 - half) and found.high == pytest.approx(2.0 + half)
    assert not found.resolved  # -0.48 to 4.48


def test_one_value_has_no_interval_and_is_not_resolved() -> None:
    assert estimate([7.0]) == Estimate(7.0, 1)
    assert not Estimate(7.0, 1).resolved
    assert estimate([]) is None


def test_a_pair_is_of_equal_seeds_and_a_seed_of_one_arm_alone_is_left_out() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: 9.0}, {0: 1.5, 1: 2.5, 3: 0.0})
    assert found is not None
    assert (found.mean, found.count, found.low, found.high) == (-0.5, 2, -0.5, -0.5)
    assert found.resolved and (-found).mean == 0.5
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairing_resolves_what_the_spread_over_seeds_hides() -> None:
    ours, theirs = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.11, 1: 2.1, 2: 3.09}
    found = paired(ours, theirs)
    assert found is not None and found.resolved and found.mean == pytest.approx(-0.1)


def test_a_point_is_on_the_front_unless_another_is_as_low_in_both_and_lower_in_one() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (3.0, 2.0), (4.0, 1.0), (4.0, 1.0)]
    assert pareto(points) == (True, True, False, False, True, True)
    assert pareto([]) == ()


def test_a_threshold_is_crossed_on_the_straight_line_between_two_validations() -> None:
    curve = [Point(100, 2.0, 10.0), Point(200, 1.5, 30.0), Point(300, 1.6, 50.0)]
    found = crossing(curve, 1.6)
    assert found is not None  # four fifths of the way, and not again at step 300
    assert found.steps == pytest.approx(180.0) and found.seconds == pytest.approx(26.0) and not found.at_most


def test_a_threshold_that_is_met_at_once_is_met_at_most_then_and_another_never() -> None:
    curve = [Point(100, 2.0, 10.0), Point(200, 1.5)]
    found = crossing(curve, 2.0)
    assert found is not None and found.at_most and found.steps == 100
    assert crossing(curve, 1.49) is None
    assert crossing([], 1.0) is None
    late = crossing(curve, 1.75)
    assert late is not None and late.steps == 150 and late.seconds is None
