"""Means with 95% intervals by Student's t, and what holds of several of them at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
POWER = 0.8
ROUNDING = 1e-12  # of the largest value; values that differ by less have no spread


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` units that were sampled independently.

    `error` is its standard error and `freedom` the degrees of freedom. Both are None where no interval holds: for one
    unit, for too few of them, or where all happen to be equal.
    """

    mean: float
    count: int
    error: float | None = None
    freedom: float | None = None

    def half(self, comparisons: int = 1) -> float | None:
        """Half of the 95% interval, which ± states; of several comparisons, so wide that all hold (Bonferroni)."""
        if self.error is None or self.freedom is None:
            return None
        return t_quantile(self.freedom, 1.0 - (1.0 - CONFIDENCE) / max(1, comparisons)) * self.error

    def interval(self, comparisons: int = 1) -> tuple[float, float] | None:
        half = self.half(comparisons)
        return None if half is None else (self.mean - half, self.mean + half)

    def resolved(self, comparisons: int = 1) -> bool:
        """Whether there is an interval, and it excludes 0."""
        half = self.half(comparisons)
        return half is not None and abs(self.mean) > half

    @property
    def p_value(self) -> float | None:
        """Of a mean that is really 0, two-sided."""
        if self.error is None or self.freedom is None:
            return None
        from scipy.special import stdtr

        return float(2.0 * stdtr(self.freedom, -abs(self.mean) / self.error))

    @property
    def detectable(self) -> float | None:
        """The effect that such an interval excludes 0 for in 80% of repeats."""
        if self.error is None or self.freedom is None:
            return None
        return (t_quantile(self.freedom) + t_quantile(self.freedom, 2 * POWER - 1)) * self.error


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of independent values; None for no values."""
    if not values:
        return None
    mean, count = fmean(values), len(values)
    spread = stdev(values) if count > 1 and math.isfinite(mean) else 0.0
    if not math.isfinite(mean) or spread <= ROUNDING * max(map(abs, values)):
        return Estimate(mean, count)
    return Estimate(mean, count, spread / math.sqrt(count), count - 1)


def welch(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two independent means of unequal spreads (Welch 1947); `count`: of the smaller side."""
    mean, count = first.mean - second.mean, min(first.count, second.count)
    if first.error is None or second.error is None or first.freedom is None or second.freedom is None:
        return Estimate(mean, count)
    squares = first.error**2, second.error**2
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / first.freedom + squares[1] ** 2 / second.freedom)
    return Estimate(mean, count, math.sqrt(sum(squares)), freedom)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, and quicker to import

    return float(stdtrit(freedom, (1.0 + confidence) / 2.0))
