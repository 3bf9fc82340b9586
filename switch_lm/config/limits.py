"""How many CPU cores and how much memory this process may use: the machine's, or those of its cgroups."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")


def num_cores() -> int:
    """At least 1. A quota of one and a half cores counts as two. A rule, since the number of threads changes bits."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota / period for quota, period in _limits("cpu", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def memory_bytes() -> float:
    """Of the CPU, with swap; infinity where the system does not say."""
    try:
        installed = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        installed = math.inf
    limits = [limit for (limit,) in _limits("memory", "memory.max", "memory.limit_in_bytes")]
    return min([installed if installed > 0 else math.inf, *limits]) + _swap_bytes()


def _swap_bytes() -> int:
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(r"^SwapTotal: +(\d+) kB$", MEMORY.read_text(encoding="utf-8"), re.MULTILINE):
            return 1024 * int(found[1])
    return 0


def _limits(controller: str, v2: str, *v1: str) -> Iterator[list[float]]:
    """Those of the process's cgroups and of the groups around them: the numbers of a file of v2, or of files of v1.

    In a container the names of the groups may be the host's: then only the mounted root is there.
    """
    try:
        groups = GROUPS_OF_PROCESS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for _, controllers, group in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if controllers and controller not in controllers.split(","):
            continue
        names = v1 if controllers else (v2,)
        for mount in (controllers, controller) if controllers else ("", "unified"):  # v2 alone, or beside v1
            folder = CGROUPS / mount / group.replace("..", "").lstrip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(CGROUPS) and (numbers := _positive(place, names)):
                    yield numbers


def _positive(folder: Path, names: tuple[str, ...]) -> list[float]:
    """The numbers in these files; empty without a limit ("max", -1) or without the files."""
    try:
        numbers = [float(word) for name in names for word in (folder / name).read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []
    return numbers if min(numbers, default=0.0) > 0 else []
