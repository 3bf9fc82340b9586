"""Does a long sweep in one process grow? Runs one and compares memory, handles and threads of its jobs."""

from __future__ import annotations

import argparse
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

BOUND_KIB = 256.0  # of memory a job, after the first fifth, in which caches fill: less than what a job itself takes
SMALL = (
    "model.num_layers=1", "model.d_model=16", "model.num_heads=2", "model.d_ff=32", "model.num_experts=4",
    "model.context_length=16", "data.batch_size=4", "data.path=text.txt", "trainer.max_steps=6", "trainer.val_every=3",
    "trainer.compile=false", "logger.log_every=2", "logger.sample_length=10", "logger.progress=none",
)  # fmt: skip


class Held(NamedTuple):
    """What the process holds after a job."""

    memory_kib: float
    handles: int
    threads: int


def held() -> Held:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    )


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
    fifth = runs // 5
    early, late = found[fifth : 2 * fifth], found[-fifth:]
    between = runs - 1.5 * fifth - fifth / 2  # jobs from the middle of the one to the middle of the other
    growth = (median(h.memory_kib for h in late) - median(h.memory_kib for h in early)) / between
    handles = max(h.handles for h in late) - max(h.handles for h in early)
    threads = max(h.threads for h in late) - max(h.threads for h in early)
    print(f"{runs} jobs in {time.perf_counter() - started:.0f} s; after the first, in the middle, after the last:")
    for name, unit in (("memory_kib", "KiB of memory"), ("handles", "file handles"), ("threads", "threads")):
        print(f"  {unit:14}" + "".join(f"{getattr(found[i], name):12,.0f}" for i in (0, runs // 2, -1)))
    good = growth <= BOUND_KIB and handles <= 0 and threads <= 0
    print(
        f"growth a job {growth:.1f} KiB (bound {BOUND_KIB:g}), handles {handles:+}, threads {threads:+} (bound 0): "
        + ("held" if good else "NOT HELD")
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
