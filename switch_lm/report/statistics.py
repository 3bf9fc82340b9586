"""What can be said from a few numbers: mean and spread, 95 % t intervals, who is dominated, when a curve crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

CONFIDENCE = 0.95
ENOUGH_SEEDS = 5


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values; standard deviation and interval are None where there is one value only."""

    mean: float
    count: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def resolved(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)

    def __neg__(self) -> Estimate:
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(-self.mean, self.count, self.deviation, low, high)


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


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Estimate | None:
    """Of the differences ours - theirs, over the seeds that both have; None if there is none.

    A key that is no whole number stands for an unknown seed, which is paired with nothing.
    """
    seeds = sorted(seed for seed in ours.keys() & theirs.keys() if isinstance(seed, int))
    return estimate([ours[seed] - theirs[seed] for seed in seeds])


@cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with `freedom` >= 1 degrees of freedom."""
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom)), in which the probability grows from 0 to 1
    for _ in range(100):
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= t), t = sqrt(freedom) tan(angle). Source: Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even)."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def pareto(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """Of each point, whether no other is at least as low in both coordinates and lower in one."""
    return tuple(
        not any(x <= own_x and y <= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points
    )


@dataclass(frozen=True)
class Crossing:
    """When a curve first reached a threshold; `at_most`: it was there at its first point already."""

    steps: float
    seconds: float | None
    at_most: bool = False


@dataclass(frozen=True)
class Point:
    """One validation."""

    step: int
    loss: float
    seconds: float | None = None  # of training steps until then


def crossing(curve: Sequence[Point], threshold: float) -> Crossing | None:
    """The first time the loss is at the threshold or below, on the straight line between two validations."""
    before: Point | None = None
    for point in curve:
        if point.loss <= threshold:
            if before is None:
                return Crossing(point.step, point.seconds, at_most=True)
            share = (before.loss - threshold) / (before.loss - point.loss)
            seconds = None
            if before.seconds is not None and point.seconds is not None:
                seconds = before.seconds + share * (point.seconds - before.seconds)
            return Crossing(before.step + share * (point.step - before.step), seconds)
        before = point
    return None
