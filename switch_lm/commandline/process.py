"""What a command that owns its process asks of it, and cannot or need not set back: memory, waiting, a first word."""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BEGAN = time.monotonic()  # about a second after the process did: training imports Hydra before


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for the next step, which saves a tenth of a step's time. glibc only.

    Otherwise each step asks the system for the same tens of thousands of pages again.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the largest that glibc takes before 2.35


# How often an idle thread of the GNU OpenMP looks for work before it sleeps, a tenth of a millisecond. By default it is
# 300,000 times: beside two busy processes on two cores, training was a third slower than with one thread. Sleeping at
# once (OMP_WAIT_POLICY=PASSIVE) is best there, and costs a fifth of the speed on an idle machine; this costs 2%.
SPINS = {"GOMP_SPINCOUNT": "4000"}


def spins() -> dict[str, str]:
    """SPINS, unless somebody chose how threads wait."""
    return {} if "OMP_WAIT_POLICY" in os.environ else SPINS


@contextmanager
def environment(**defaults: str) -> Iterator[None]:
    """In its block, or in the function it decorates, these variables and SPINS have a value, if they have none yet.

    Torch reads SPINS when it is loaded. An OMP_WAIT_POLICY that somebody chose counts instead.
    """
    wanted = spins() | defaults
    added = {name: text for name, text in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def first_word() -> None:
    """Says that torch is being loaded, unless it is there already."""
    if "torch" not in sys.modules:
        print("loading torch, which takes some seconds ...", file=sys.stderr, flush=True)
