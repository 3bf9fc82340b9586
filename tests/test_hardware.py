"""What the process and the compiler are told before training."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from switch_lm.hardware import compile_module

FAULTS = """
import resource, sys, torch
from switch_lm.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # 40 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of ten allocations of 40 MiB after ten that warm up, in a process of its own: it can't be undone."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_asking_the_system_for_it() -> None:
    assert page_faults("keep") < 100 < 1000 < page_faults("as it is")


def test_compiled_modules_draw_torchs_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor, "fallback_random", False)
    module = torch.nn.Identity()
    compile_module(module)
    assert inductor.fallback_random
