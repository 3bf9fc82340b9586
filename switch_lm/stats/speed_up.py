"""How many times as long a reference takes to the same loss, from runs of several lengths; nothing is extrapolated."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Self

import numpy as np
import torch

from switch_lm.stats.clusters import jackknife


@dataclass(frozen=True)
class SpeedUp:
    """Seconds of the reference to our loss, over ours.

    `reach`: the ratios that the reference's curve covers. Beyond it `ratio` is None: `faster` if even its longest
    run has a higher loss than ours; otherwise even its shortest has a lower one. An end of `interval` beyond it is 0 or
    infinity. `interval`: 95%, of this figure
    alone, cut off at the reach; None where it is not known.
    """

    ratio: float | None
    reach: tuple[float, float]
    interval: tuple[float, float] | None = None
    faster: bool = False

    def __str__(self) -> str:
        """Such as "1.23 (1.10 to 1.38)", "0.61 (under 0.50 to 0.75)" or "over 2.00"."""
        low, high = self.reach

        def shown(ratio: float) -> str:
            return f"{'under ' * (ratio <= low)}{'over ' * (ratio >= high)}{min(max(ratio, low), high):.2f}"

        ratio = f"{self.ratio:.2f}" if self.ratio is not None else shown(math.inf if self.faster else 0.0)
        if self.interval is None or len({ratio, *map(shown, self.interval)}) == 1:  # all is beyond one end
            return ratio
        first, last = self.interval
        return f"{ratio} ({shown(first)} to {shown(last)})"


@dataclass(frozen=True)
class Curve:
    """The loss falls with the logarithm of the seconds (M): monotone cubic pieces (Fritsch and Carlson 1980)."""

    loss_M: list[float]  # ascending
    log_seconds_M: list[float]

    @classmethod
    def of(cls, loss_of: Mapping[float, float]) -> Self:
        """From the loss after so many seconds. What rises by chance is levelled first (isotonic regression)."""
        from scipy.optimize import isotonic_regression

        seconds = sorted(loss_of)
        falling = isotonic_regression([loss_of[s] for s in seconds], increasing=False).x
        levels = {
            loss: np.log([s for s, x in zip(seconds, falling, strict=True) if x == loss]) for loss in set(falling)
        }
        return cls(sorted(levels), [float(levels[loss].mean()) for loss in sorted(levels)])

    def log_seconds_to(self, loss: float) -> float:
        """Minus infinity above the highest loss, infinity below the lowest."""
        from scipy.interpolate import PchipInterpolator

        if not self.loss_M[0] <= loss <= self.loss_M[-1]:
            return -math.inf if loss > self.loss_M[-1] else math.inf
        if len(self.loss_M) == 1:
            return self.log_seconds_M[0]
        return float(PchipInterpolator(self.loss_M, self.log_seconds_M)(loss))


def speed_up_of_mean(curve: Mapping[float, float], loss: float, half: float | None, seconds: float) -> SpeedUp:
    """`curve`: the reference's mean losses by seconds; `loss` after `seconds`, with half of its 95% interval.

    `half` is that of the difference from a point of the curve, so the noise of both counts. The ends of the interval
    are read off the curve. ValueError for a curve of a single length.
    """
    if len(curve) < 2:
        raise ValueError(f"{len(curve)} lengths: give two or more")
    fitted = Curve.of(curve)
    ends = [math.exp(log) / seconds for log in fitted.log_seconds_M]
    reach, log = (ends[-1], ends[0]), fitted.log_seconds_to(loss)
    low, high = (math.exp(fitted.log_seconds_to(loss + sign * (half or 0.0))) / seconds for sign in (1.0, -1.0))
    interval = None if half is None else (low, high)
    return SpeedUp(None if math.isinf(log) else math.exp(log) / seconds, reach, interval, faster=log == math.inf)


def speed_up(curve: Mapping[float, Mapping[int, float]], losses: Mapping[int, float], seconds: float) -> SpeedUp:
    """`curve`: the reference's losses by the seconds of a whole run and by seed; `losses`: ours, after `seconds`.

    Over the seeds that all have: each is left out in turn, of both sides, for the interval (jackknife, t with one
    degree of freedom less than seeds). None where a curve without one seed does not reach. ValueError without a seed
    in common, or for a curve of a single length.
    """
    seeds = sorted(set(losses).intersection(*curve.values()))
    if not seeds or len(curve) < 2:
        raise ValueError(
            f"{len(curve)} lengths with {len(seeds)} seeds in common: give two lengths and one seed or more"
        )

    def curve_of(some: Iterable[int]) -> Curve:
        return Curve.of({length: fmean(own[seed] for seed in some) for length, own in curve.items()})

    def log_ratio(some: list[int]) -> float:
        return curve_of(some).log_seconds_to(fmean(losses[seed] for seed in some)) - math.log(seconds)

    ends = [math.exp(log) / seconds for log in curve_of(seeds).log_seconds_M]  # from the longest run to the shortest
    reach, center = (ends[-1], ends[0]), log_ratio(seeds)
    if math.isinf(center):
        return SpeedUp(None, reach, faster=center > 0.0)
    without = [log_ratio([other for other in seeds if other != seed]) for seed in seeds if len(seeds) > 1]
    if not without or not all(map(math.isfinite, without)):
        return SpeedUp(math.exp(center), reach)
    values = torch.tensor(without, dtype=torch.float64)
    interval = jackknife(center, values, count=len(seeds), effective=len(seeds), scale=1.0).interval()
    return SpeedUp(math.exp(center), reach, interval and (math.exp(interval[0]), math.exp(interval[1])))
