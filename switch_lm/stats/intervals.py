"""Means with 95 % t intervals, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values; standard deviation and interval are None for a single value."""

    mean: float
    count: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def resolved(self) -> bool:
        """Whether there is an interval that excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard deviation (n - 1) and 95 % t interval of the mean; None for no values."""
    if not values:
        return None
    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean, 1)
    deviation = stdev(values)
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, count, deviation, mean - half, mean + half)


def paired(ours: Mapping[int | None, float], theirs: Mapping[int | None, float]) -> Estimate | None:
    """The differences ours - theirs over the seeds that both have; None without any. A seed of None is unknown."""
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed is not None and seed in theirs])


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with `freedom` >= 1 degrees of freedom."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, and quicker to import

    return float(stdtrit(freedom, (1.0 + confidence) / 2.0))
