"""How long do contestants take, side by side: interleaved blocks, and the spread of paired ratios."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

AT_LEAST_SECONDS = 0.02  # a shorter block says more of the clock and the scheduler than of what it times
WARM_UP_CALLS = 3  # torch compiles kernels and optimizers make their state in the first calls


@dataclass(frozen=True)
class Contestant:
    """`block` is timed and gets the repetition's draw; one that could not be made has `error` instead."""

    name: str
    block: Callable[[Any], object] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Race:
    """Seconds of one call of each contestant in each repetition, and why the others have none."""

    loops: int = 1
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, baseline: str) -> Spread | None:
        """Time of `name` over that of `baseline`, paired within each repetition; None if one did not run."""
        if name not in self.seconds or baseline not in self.seconds:
            return None
        return paired(self.seconds[name], self.seconds[baseline])


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The spread of the ratios of one repetition each, not the ratio of two spreads: what slows both cancels."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def race(
    contestants: Sequence[Contestant],
    draw: Callable[[int], Any],
    *,
    repetitions: int,
    at_least: float = AT_LEAST_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Times all contestants in turn (A B A B ...), after untimed calls to warm up.

    `draw(n)` gives input number n: each call has its own, the same for all contestants of a repetition. A repetition
    makes as many calls in a row as the fastest contestant needs for `at_least` seconds. One that raises is out.
    """
    race = Race(errors={c.name: c.error for c in contestants if c.error is not None})
    running = {c.name: c.block for c in contestants if c.block is not None}
    fastest = math.inf
    for name in list(running):
        if (seconds := _attempt(race, running, name, [draw(-1 - i) for i in range(WARM_UP_CALLS)], clock)) is not None:
            fastest = min(fastest, seconds)
    race.loops = 1 if math.isinf(fastest) else max(1, math.ceil(at_least / max(fastest, 1e-6)))
    race.seconds = {name: [] for name in running}
    for repetition in range(repetitions):
        draws = [draw(repetition * race.loops + i) for i in range(race.loops)]
        for name in list(running):
            if (seconds := _attempt(race, running, name, draws, clock, alike=True)) is not None:
                race.seconds[name].append(seconds)
    gc.unfreeze()
    return race


def _attempt(
    race: Race,
    running: dict[str, Callable[[Any], object]],
    name: str,
    draws: Sequence[Any],
    clock: Callable[[], float],
    *,
    alike: bool = False,
) -> float | None:
    """Seconds of a call, the mean of all or of the last alone; None if it raised and is therefore out."""
    try:
        with frozen_garbage():
            if alike:
                return timed(running[name], draws, clock) / len(draws)
            return [timed(running[name], [one], clock) for one in draws][-1]
    except Exception as error:  # whatever a peer raises is its result
        race.errors[name] = told(error)
        race.seconds.pop(name, None)
        del running[name]
        return None


def timed(block: Callable[[Any], object], draws: Sequence[Any], clock: Callable[[], float]) -> float:
    started = clock()
    for one in draws:
        block(one)
    return clock() - started


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """No collection of garbage within; what there is now is not looked at until the race is over: that takes 0.3 s."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    except BaseException:
        gc.unfreeze()
        raise
    finally:
        gc.enable()


def told(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Spread:
    """Median and its distribution-free interval, from order statistics (binomial, p = 1/2); the range if too few."""
    ordered, n = sorted(values), len(values)
    tail, rank = 0.0, 0
    while rank < n // 2 and tail + math.comb(n, rank) / 2**n <= (1 - confidence) / 2:
        tail += math.comb(n, rank) / 2**n
        rank += 1
    cut = max(rank - 1, 0)
    return Spread(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])
