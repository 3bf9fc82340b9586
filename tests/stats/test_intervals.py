"""Single intervals, against closed forms."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from switch_lm.stats.intervals import Estimate, estimate, t_quantile, welch


def test_the_quantile_has_its_closed_forms_and_those_of_the_tables() -> None:
    assert t_quantile(1, 0.95) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-12)  # Cauchy
    assert t_quantile(2, 0.95) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    assert t_quantile(10_000) == pytest.approx(1.96020, abs=1e-5)  # nearly normal
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)
    assert [round(t_quantile(freedom), 3) for freedom in (3, 9, 20)] == [3.182, 2.262, 2.086]


def test_an_interval_is_the_mean_plus_minus_t_times_its_standard_error() -> None:
    result = estimate([1.0, 2.0, 3.0])  # deviation 1
    assert result is not None
    assert (result.mean, result.count, result.freedom) == (2.0, 3, 2)
    half = 4.302652729911275 / math.sqrt(3)
    assert result.half() == pytest.approx(half)
    assert result.interval() == pytest.approx((2.0 - half, 2.0 + half))
    assert not result.resolved()  # -0.48 to 4.48
    assert result.p_value == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue)


def test_of_several_comparisons_each_interval_is_so_wide_that_all_hold() -> None:
    values = [0.9, 1.0, 1.1, 0.95, 1.05]
    result = estimate(values)
    assert result is not None and result.error is not None
    assert result.half(5) == pytest.approx(t_quantile(4, 0.99) * result.error)  # 5% / 5
    assert result.resolved() and result.resolved(5) and not result.resolved(10**6)


def test_an_effect_is_detectable_where_four_of_five_repeats_would_resolve_it() -> None:
    result = Estimate(0.0, 5, error=1.0, freedom=4)
    assert result.detectable == pytest.approx(2.776445 + 0.940965, abs=1e-5)  # t at 0.975 and at 0.8


@pytest.mark.parametrize("values", [[7.0], [0.1 + 0.2] * 4, [0.3, 0.1 + 0.2, 0.3], [1.0, math.nan], [math.inf] * 2])
def test_one_value_equal_ones_and_infinite_ones_have_no_interval_and_are_not_resolved(values: list[float]) -> None:
    result = estimate(values)
    assert result is not None and result.count == len(values)
    assert [result.half(), result.interval(), result.p_value, result.detectable] == [None] * 4
    assert not result.resolved()


def test_no_values_have_no_mean() -> None:
    assert estimate([]) is None


def test_means_of_unequal_spread_are_compared_as_welch_does() -> None:
    ours, theirs = [1.0, 1.1, 0.9], [2.0, 3.0, 1.0, 5.0]
    first, second = estimate(ours), estimate(theirs)
    assert first is not None and second is not None
    known, result = stats.ttest_ind(ours, theirs, equal_var=False), welch(first, second)
    assert result.mean == pytest.approx(-1.75) and result.count == 3
    assert result.freedom == pytest.approx(known.df) and result.p_value == pytest.approx(known.pvalue)
    assert result.interval() == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert welch(first, Estimate(2.0, 1)) == Estimate(-1.0, 1)  # one value has no spread
