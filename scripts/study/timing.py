"""Times that may be quoted: taken in turns, on a machine that does nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench.harness import Contestant, Race, Spread, race

from switch_lm.commandline.process import keep_freed_memory

QUIET, REHEARSAL = 0.95, 10  # a machine of which less is idle is not quiet; fewer repetitions are a rehearsal


class BusyError(Exception):
    """The machine is not quiet enough to measure a time."""


def in_turns(
    makers: Mapping[str, Callable[[], Callable[[Any], object]]],
    draw: Callable[[int], Any],
    repetitions: int,
    *,
    baseline: str,
    each: int = 1,
) -> dict[str, Any]:
    """Seconds of a call over `each`, and their ratio to `baseline` in the same repetition: medians and quartiles.

    BusyError if something else is at work.
    """
    if (idle := idle_share()) is not None and idle < QUIET:
        busy = f"others keep {1 - idle:.0%} of this machine busy; a time needs {QUIET:.0%} of it idle"
        if repetitions >= REHEARSAL:
            raise BusyError(f"{busy}; stop them, and the same command measures it")
        print(f"warning: {busy}", flush=True)
    keep_freed_memory()  # as training does
    done = race([Contestant.made_by(make, name) for name, make in makers.items()], draw, repetitions=repetitions)
    if done.errors:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in done.errors.items()))
    figures = {name: _figures(done, name, baseline, each) for name in makers}
    return {"idle": idle, "threads": torch.get_num_threads(), "repetitions": repetitions, "entries": figures}


def _figures(done: Race, name: str, baseline: str, each: int) -> dict[str, Any]:
    ratio = done.ratio(name, baseline)
    own = Spread.of([seconds / each for seconds in done.seconds[name]])
    return {"seconds": asdict(own), "to_dense": None if ratio is None else asdict(ratio)}


def idle_share() -> float | None:
    """Which share of all cores does nothing, for three seconds; None where the system does not say."""

    def ticks() -> list[int]:  # of all cores: user, nice, system, idle, waiting for a disk, ...
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        return [int(number) for number in first.split()[1:9]]

    try:
        before = ticks()
        time.sleep(3.0)
        spent = [now - then for now, then in zip(ticks(), before, strict=True)]
    except (OSError, ValueError):
        return None
    return (spent[3] + spent[4]) / max(1, sum(spent))
