"""Means over windows that are the units: closed forms, marks that few windows hold, and what has no interval."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from switch_lm.probe.reading import Probe
from switch_lm.stats.clusters import LEAST, difference, mean, mean_where, means_of_parts, plus_minus
from switch_lm.stats.intervals import Estimate, estimate, t_quantile

VALUE_BN = torch.randn(12, 30, generator=torch.Generator().manual_seed(0)).double()


def marks(*numbers: int) -> Tensor:
    """That many marks in each of 12 windows."""
    return torch.arange(30) < torch.tensor([*numbers] + [0] * (12 - len(numbers)))[:, None]


def values(estimate: Estimate) -> tuple[float, ...]:
    assert estimate.error is not None and estimate.freedom is not None
    return estimate.mean, estimate.count, estimate.error, estimate.freedom


def test_windows_not_characters_are_the_units() -> None:
    expected = estimate(VALUE_BN.mean(dim=1).tolist())
    assert expected is not None and expected.error is not None
    assert values(mean(VALUE_BN)) == pytest.approx((expected.mean, 12, expected.error, 11.0))


def test_only_windows_that_hold_marks_count() -> None:
    result, alone = mean_where(VALUE_BN, marks(*[7] * 9)), mean(VALUE_BN[:9, :7])
    assert result is not None and values(result) == pytest.approx((alone.mean, 9, alone.error, 8.0))


def test_the_error_of_marked_values_is_that_of_leaving_out_one_window_after_the_other() -> None:
    where_BN = marks(30, 20, 9, 8, 7, 6, 5, 4, 3)
    result = mean_where(VALUE_BN, where_BN)
    left = [VALUE_BN[rows][where_BN[rows]].mean() for b in range(9) if (rows := torch.arange(12) != b).any()]
    assert result is not None and result.mean == pytest.approx(VALUE_BN[where_BN].mean().item())
    error = math.sqrt(8 / 9 * sum((one.item() - result.mean) ** 2 for one in left))
    assert result.error == pytest.approx(error) and result.count == 9


def test_where_few_windows_hold_most_marks_there_are_fewer_degrees_of_freedom() -> None:
    numbers = [30, 30, 30, 2, 2, 2, 2, 2, 2]
    result = mean_where(VALUE_BN, marks(*numbers))
    assert result is not None and result.count == 9
    assert result.freedom == pytest.approx(sum(numbers) ** 2 / sum(n * n for n in numbers) - 1)


def test_where_one_window_decides_or_windows_are_too_few_there_is_no_interval() -> None:
    decided, few, enough = (mean_where(VALUE_BN, marks(*n)) for n in ([30, *[1] * 9], [3] * (LEAST - 1), [3] * LEAST))
    assert decided is not None and few is not None and enough is not None
    assert decided.error is None and few.error is None and enough.error is not None
    assert plus_minus(few, "+.4f") == f"{few.mean:+.4f} (7 windows: no interval)"
    assert (
        mean(VALUE_BN[:7]).error is None
        and plus_minus(mean(torch.ones(1, 3)), ".1f") == "1.0 (one window: no interval)"
    )


def test_a_difference_of_two_marks_is_that_of_their_means_and_has_the_windows_of_the_rarer_one() -> None:
    first_BN, second_BN = marks(*[5] * 12), marks(*[9] * 9) & ~marks(*[5] * 9)
    result = difference(VALUE_BN, first_BN, second_BN)
    assert result is not None
    assert result.mean == pytest.approx((VALUE_BN[first_BN].mean() - VALUE_BN[second_BN].mean()).item())
    assert result.count == 9 and result.freedom == pytest.approx(8.0)
    pairs = difference(VALUE_BN, marks(*[5] * 12), ~marks(*[5] * 12))
    paired = estimate((VALUE_BN[:, :5].mean(dim=1) - VALUE_BN[:, 5:].mean(dim=1)).tolist())
    assert pairs is not None and paired is not None and pairs.error == pytest.approx(paired.error)


def test_parts_share_one_spread_which_units_of_more_values_show_less_of() -> None:
    """Of 4 values 1 and of 16 values 2: the mean is 1.8, the squares 4 x 0.64 + 16 x 0.04 = 3.2; of the second 8."""
    number_PB, mean_PB = torch.zeros(3, 9).double(), torch.zeros(3, 9).double()
    number_PB[0, :2], mean_PB[0, :2] = torch.tensor([4.0, 16.0]), torch.tensor([1.0, 2.0])
    number_PB[1, 1:], mean_PB[1, 1:] = 1.0, torch.tensor([1.0, -1.0]).repeat(4)
    number_PB[2, 3], mean_PB[2, 3] = 5.0, 0.7
    freedom = 20 * 20 / (4 * 4 + 16 * 16) - 1 + 8 - 1
    first, second, alone = means_of_parts(mean_PB * number_PB, number_PB)
    assert values(first) == pytest.approx((1.8, 2, math.sqrt(11.2 / freedom / 20), freedom))
    assert values(second) == pytest.approx((0.0, 8, math.sqrt(11.2 / freedom / 8), freedom))
    assert alone.mean == pytest.approx(0.7) and (alone.count, alone.error) == (1, None)
    few = means_of_parts((mean_PB * number_PB)[:, :7], number_PB[:, :7])
    equal = means_of_parts(number_PB * 0.1, number_PB)
    assert all(one.error is None for one in (*few, *equal))


def test_of_marks_that_are_nowhere_there_is_no_mean() -> None:
    none_BN = marks(0)
    assert mean_where(VALUE_BN, none_BN) is None
    assert difference(VALUE_BN, marks(3), none_BN) is None and difference(VALUE_BN, none_BN, marks(3)) is None


@pytest.mark.parametrize("value", [0.0, 0.1, 2.7e5])
def test_equal_windows_never_have_an_interval_of_width_zero(value: float) -> None:
    value_BN = torch.full((20, 7), value)
    for result in (mean(value_BN), mean_where(value_BN, value_BN == value)):
        assert result is not None and result.error is None and not result.resolved()
        assert "(20 windows, all equal or decided by one: no interval)" in plus_minus(result, ".1f")


def test_estimates_are_printed_with_half_of_their_single_interval() -> None:
    one = Estimate(0.0123, 9, 0.002, 8.0)
    half = 0.002 * t_quantile(8.0)
    assert plus_minus(one, "+.4f") == f"+0.0123 ± {half:.4f}" and plus_minus(one, "+.2%") == f"+1.23% ± {half:.2%}"
    assert plus_minus(Estimate(2e-7, 9, 1e-7, 8.0), "+.4f") == "+0.0000002 ± 0.0000002"
    assert plus_minus(Estimate(1e-6, 9, 1e-5, 8.0), ".1%") == "0.000% ± 0.002%"
    assert plus_minus(Estimate(0.5, 3), ".1%", "batch") == "50.0% (3 batches: no interval)"


@pytest.mark.parametrize("length", [17, 100, 101, 999, 1000, 1001])
@pytest.mark.parametrize("num_windows", [1, 7, 128])
def test_windows_of_a_probe_never_overlap(length: int, num_windows: int) -> None:
    ids_BS = Probe.of(torch.arange(length), context_length=16, num_windows=num_windows).ids_BS
    assert len(ids_BS.flatten().unique()) == ids_BS.numel() and len(ids_BS) == min(num_windows, (length - 1) // 16)
