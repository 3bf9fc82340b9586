"""Cores and memory that a process may use, in cgroups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from switch_lm.config import limits

FREE = {"cpu.max": "max 100000"}
CASES = [
    ("0::/", {"cpu.max": "100000 100000"}, 1),  # a container's own root
    ("0::/", {"cpu.max": "150000 100000\n"}, 2),
    ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # of the group around it
    ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000"}, 2),
    ("0::/host/7f", {"cpu.max": "20000 100000"}, 1),  # the host's name, in a container
    ("0::/../..", {"cpu.max": "400000 100000"}, 4),
    ("0::/", FREE, 8),
    ("0::/a", {"a/cpu.max": "1600000 100000"}, 8),  # more than the affinity
    ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 1),
    ("1:cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
    ("2:cpuacct,cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ("4:memory:/a", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 8),  # not a cpu group
    ("0::/\n1:name=systemd:/", {"unified/cpu.max": "200000 100000"}, 2),
    ("broken", {"cpu.max": "1 what"}, 8),
    (None, {"cpu.max": "100000 100000"}, 8),
]  # fmt: skip


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, files: dict[str, str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(limits, "GROUPS_OF_PROCESS", tmp_path / "groups")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "MEMORY", tmp_path / "meminfo")
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)


@pytest.mark.parametrize(("groups", "files", "expected"), CASES)
def test_cores_are_those_of_the_affinity_and_of_the_smallest_quota_rounded_up(
    groups: str | None, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, groups, files)
    assert limits.num_cores() == expected


def test_memory_is_that_of_the_machine_or_of_its_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "0::/a\n", {"memory.max": "4096", "a/memory.max": "max"})
    assert limits.memory_bytes() == 4096
    (tmp_path / "meminfo").write_text("MemTotal:   9 kB\nSwapTotal:       3 kB\n")
    assert limits.memory_bytes() == 4096 + 3072
    (tmp_path / "meminfo").unlink()
    (tmp_path / "cgroup" / "memory.max").write_text("max\n")
    assert limits.memory_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
