"""How long one variant takes to a loss, as a multiple of the time of another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from switch_lm.reporting.records import Point, crossing
from switch_lm.stats.intervals import Estimate, estimate

RUNG = 0.05  # nats from one loss that is tried to the next
Curves = Mapping[Any, Sequence[Point]]  # the validations by seed, in order of steps


@dataclass(frozen=True)
class TimeRatio:
    """`estimate` is of the logarithm of the ratio, paired by seed; the missed: seeds that did not reach the loss.

    With any of these it is a bound, or nothing where both sides have some, and has no interval.
    """

    loss: float
    estimate: Estimate
    ours_missed: int
    theirs_missed: int

    @property
    def missed(self) -> bool:
        return self.ours_missed + self.theirs_missed > 0

    @property
    def bound(self) -> str | None:
        """What is put before the ratio; None where it says nothing."""
        if self.ours_missed and self.theirs_missed:
            return None
        return "at least " if self.ours_missed else "at most " if self.theirs_missed else ""


def lowest_rung(*variants: Curves) -> float | None:
    """The lowest multiple of RUNG that at least half of the seeds of each variant reached; None without a curve."""
    halves = []
    for curves in variants:
        lowest = sorted(min(point.loss for point in curve) for curve in curves.values() if curve)
        if not lowest:
            return None
        halves.append(lowest[(len(lowest) - 1) // 2])
    rungs = math.ceil(round(max(halves) / RUNG, 9))  # rounded first: 1.15 / 0.05 is 22.999999999999996
    return round(rungs * RUNG, 9)


def time_ratio(ours: Curves, theirs: Curves) -> TimeRatio | None:
    """Over the seeds that both have, to their lowest rung; None if they share none, or if a time is not known.

    A seed that did not reach it counts as the slowest: at its own whole time, or at the longest of all if that is more.
    Where both of a pair did not, both count as the same time.
    """
    shared = [seed for seed in ours if min(len(ours[seed]), len(theirs.get(seed, ()))) > 1]  # one point has no time
    sides = [{seed: curves[seed] for seed in shared} for curves in (ours, theirs)]
    if (loss := lowest_rung(*sides)) is None:
        return None
    hits = [{seed: crossing(curve, loss) for seed, curve in side.items()} for side in sides]
    reached = [hit.seconds for side in hits for hit in side.values() if hit is not None]
    whole = [curve[-1].seconds for side in sides for curve in side.values()]
    known = [seconds for seconds in (*reached, *whole) if seconds is not None and seconds > 0.0]
    if len(known) < len(reached) + len(whole):
        return None
    longest = max(known[: len(reached)], default=0.0)
    times = [
        {seed: (hit and hit.seconds) or max(longest, side[seed][-1].seconds or 0.0) for seed, hit in own.items()}
        for own, side in zip(hits, sides, strict=True)
    ]
    neither = {seed for seed in shared if all(own[seed] is None for own in hits)}
    result = estimate([0.0 if s in neither else math.log(times[0][s] / times[1][s]) for s in shared])
    ours_missed, theirs_missed = (sum(hit is None for hit in own.values()) for own in hits)
    if result is None:
        return None
    if ours_missed or theirs_missed:
        result = Estimate(result.mean, result.count)
    return TimeRatio(loss, result, ours_missed, theirs_missed)
