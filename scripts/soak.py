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
from switch_lm.training import start

OBJECTS = 50.0  # Python objects a job may leave; its model, trainer and configuration have ten thousand
MEMORY_KIB = 256.0  # memory a job may leave in a sweep of LONG jobs or more; in a shorter one caches still fill:
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
    """What is held after each job of a sweep over seeds, started as a user starts it, in an empty folder."""
    after_jobs: list[Held] = []
    train = start.train

    def measured(*args: Any, **kwargs: Any) -> dict[str, Any]:
        result = train(*args, **kwargs)
        after_jobs.append(held())
        return result

    command.train = measured  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
        sys.argv = ["train", "-m", *SMALL, f"seed=range(0,{runs})"]
        command.main()
        os.chdir("/")
    return after_jobs


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="scripts/soak.py", description=__doc__)
    jobs = "jobs of the sweep, 10 or more (default: 200)"
    options.add_argument("--runs", type=int, default=200, metavar="N", help=jobs)
    runs, started = options.parse_args(argv).runs, time.perf_counter()
    after_jobs = sweep(runs)
    print(
        f"{runs} jobs in {time.perf_counter() - started:.0f} s; after the first, middle and last job; growth per job:"
    )
    memory = MEMORY_KIB if runs >= LONG else SHORT_MEMORY_KIB
    good = True
    for name, bound in {"memory_kib": memory, "objects": OBJECTS, "handles": 0, "threads": 0}.items():
        values = [getattr(held, name) for held in after_jobs]
        growth = growth_of(values)
        good = good and growth <= bound
        shown = "".join(f"{values[i]:12,.0f}" for i in (0, runs // 2, -1))
        print(f"  {name:12}{shown}{growth:+10.2f}, bound {bound:g}: {'held' if growth <= bound else 'NOT HELD'}")
    return 0 if good else 1


def growth_of(values: Sequence[float]) -> float:
    """Growth per job from the second fifth of the jobs to the last: of medians, which a single job hardly changes."""
    fifth = len(values) // 5
    return (median(values[-fifth:]) - median(values[fifth : 2 * fifth])) / (len(values) - 2 * fifth)


if __name__ == "__main__":
    sys.exit(main())
