"""How long do contestants take, side by side? Interleaved blocks, and the spread of paired ratios."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

AT_LEAST_SECONDS = 0.02  # a shorter block measures the clock and the scheduler more than the code
WARM_UP_CALLS = 3  # in the first calls torch compiles kernels and optimizers create their state


@dataclass(frozen=True)
class Contestant:
    """`block` is timed and gets the draw of the repetition; one that could not be made has `error` instead."""

    name: str
    block: Callable[[Any], object] | None = None
    error: str | None = None

    @classmethod
    def made_by(cls, make: Callable[..., Callable[[Any], object]], name: str, *args: Any, **kwargs: Any) -> Contestant:
        """With the block `make(*args, **kwargs)`, or with the error that it raised."""
        try:
            return cls(name, make(*args, **kwargs))
        except Exception as error:
            return cls(name, error=one_line(error))


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
    """Seconds per call of each contestant in each repetition, and why the others have none."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    loops: int = 1

    def ratio(self, name: str, baseline: str) -> Spread | None:
        """Time of `name` over that of `baseline`, paired within each repetition; None if one did not run."""
        if name not in self.seconds or baseline not in self.seconds:
            return None
        return paired(self.seconds[name], self.seconds[baseline])


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The spread of the ratios within each repetition, not the ratio of two spreads: what slows both cancels."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def race(
    contestants: Sequence[Contestant],
    draw: Callable[[int], Any],
    *,
    repetitions: int,
    at_least: float = AT_LEAST_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Times all contestants in turn (A B A B ...), after calls to warm up that do not count.

    `draw(n)` gives input number n: every call has its own, the same for all contestants. A repetition makes as many
    calls in a row as the fastest contestant needs for `at_least` seconds. A contestant that raises is out.
    """
    blocks = {c.name: c.block for c in contestants if c.block is not None}
    race = Race({name: [] for name in blocks}, {c.name: c.error for c in contestants if c.error is not None})

    def take_turns(numbers: Sequence[int]) -> None:
        draws = [draw(number) for number in numbers]
        for name in list(race.seconds):
            try:
                with frozen_garbage():
                    started = clock()
                    for one in draws:
                        blocks[name](one)
                    race.seconds[name].append((clock() - started) / len(draws))
            except Exception as error:  # whatever a peer raises is its result
                race.errors[name] = one_line(error)
                del race.seconds[name]

    for number in range(WARM_UP_CALLS):
        take_turns([-1 - number])
    fastest = min((seconds[-1] for seconds in race.seconds.values()), default=math.inf)
    race.loops = max(1, math.ceil(at_least / max(fastest, 1e-6)))
    race.seconds = {name: [] for name in race.seconds}
    for repetition in range(repetitions):
        take_turns(range(repetition * race.loops, (repetition + 1) * race.loops))
    gc.unfreeze()
    return race


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Collects no garbage within. Until the race is over, what exists now is not looked at: that takes 0.3 s."""
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


def one_line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
