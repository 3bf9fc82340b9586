"""Does a long sweep in one process grow? Runs one and compares memory, handles and threads of its jobs."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from switch_lm import train as command

OBJECTS = 50.0  # Python objects a job may leave; its model, trainer and configuration are ten thousand
MEMORY_KIB = 256.0  # memory a job may leave, from LONG jobs on; in a shorter sweep caches and heaps still fill:
LONG, SHORT_MEMORY_KIB = 150, 1024.0
SMALL = (
    "model.num_layers=1", "model.d_model=16", "model.num_heads=2", "model.d_ff=32", "model.num_experts=4",
    "model.context_length=16", "data.batch_size=4", "data.path=text.txt", "trainer.max_steps=6", "trainer.val_every=3",
    "trainer.compile=false", "logger.log_every=2", "logger.sample_length=10", "logger.progress=none",
)  # fmt: skip


class Held(NamedTuple):
    """What the process holds after a job."""

    memory_kib: float
    objects: int
    handles: int
    threads: int


def held() -> Held:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    kib, handles = pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path("/proc/self/fd").iterdir()))
    return Held(kib, len(gc.get_objects()), handles, threading.active_count())


def sweep(runs: int) -> list[Held]:
    """What is held after each job of a sweep over seeds, run as a user runs it, in an empty folder."""
    found: list[Held] = []
    train = command.train

    def measured(*args: Any, **kwargs: Any) -> dict[str, Any]:
        result = train(*args, **kwargs)
        found.append(held())
        return result

    command.train = measured
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
        sys.argv = ["train", "-m", *SMALL, f"seed=range(0,{runs})"]
        command.main()
        os.chdir("/")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="scripts/soak.py", description=__doc__)
    options.add_argument(
        "--runs", type=int, default=200, metavar="N", help="jobs of the sweep, 10 or more (default: 200)"
    )
    runs = options.parse_args(argv).runs
    started = time.perf_counter()
    found = sweep(runs)
    print(
        f"{runs} jobs in {time.perf_counter() - started:.0f} s; after the first, in the middle, after the last, a job:"
    )
    bounds = {
        "memory_kib": MEMORY_KIB if runs >= LONG else SHORT_MEMORY_KIB,
        "objects": OBJECTS,
        "handles": 0,
        "threads": 0,
    }
    good = True
    for name, bound in bounds.items():
        values = [getattr(held, name) for held in found]
        growth, verdict = growth_of(values), "held"
        if growth > bound:
            good, verdict = False, "NOT HELD"
        shown = "".join(f"{values[i]:12,.0f}" for i in (0, runs // 2, -1))
        print(f"  {name:12}{shown}{growth:+10.2f}, bound {bound:g}: {verdict}")
    return 0 if good else 1


def growth_of(values: Sequence[float]) -> float:
    """Between two jobs, from the second fifth of them to the last: medians, which a single job does not move."""
    fifth = len(values) // 5
    return (median(values[-fifth:]) - median(values[fifth : 2 * fifth])) / (len(values) - 2 * fifth)


if __name__ == "__main__":
    sys.exit(main())
