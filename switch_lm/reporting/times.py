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
    """`estimate` is of the logarithm of the ratio, paired by seed; the missed: seeds that did not reach the loss."""

    loss: float
    estimate: Estimate
    ours_missed: int
    theirs_missed: int


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
    """
    shared = [seed for seed in ours if ours[seed] and theirs.get(seed)]
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
    result = estimate([math.log(times[0][seed] / times[1][seed]) for seed in shared])
    missed = [sum(hit is None for hit in own.values()) for own in hits]
    return None if result is None else TimeRatio(loss, result, *missed)
