"""What is set in the C library and the compiler before training."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.training.hardware import changes_bits, compile_module, detect

FAULTS = """
import resource, sys, torch
from switch_lm.commandline.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # 40 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of ten allocations of 40 MiB after ten that warm up, in its own process: it cannot be undone."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_reused_without_asking_the_system_for_it() -> None:
    assert page_faults("keep") < 100 < 1000 < page_faults("as it is")


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand_like(x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++ (on Debian: apt install g++)")
def test_a_module_that_we_compile_draws_torchs_random_numbers_and_another_does_not() -> None:
    eager, ours, others = (Noisy() for _ in range(3))
    compile_module(ours)
    others.compile(dynamic=False)
    outputs = []
    for module in (eager, ours, others):
        torch.manual_seed(0)
        outputs.append(module(torch.ones(9)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_what_was_typed_beats_what_is_stored_and_the_rest_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = {"device": "cuda", "precision": "bf16", "compile": True, "threads": 64, "name": "a GPU"}
    with pytest.raises(ConfigError, match=r"began on a GPU \(a GPU\).* on the CPU with trainer.device=cpu"):
        detect(Config(), training_flops=0.0, stored=gpu)
    now = detect(Config(trainer=TrainerConfig(device="cpu", threads=3)), training_flops=0.0, stored=gpu)
    assert (now.device, now.threads, now.precision, now.compile) == ("cpu", 3, "bf16", False)
    assert "trainer.device was cuda, now cpu" in str(changes_bits(now, gpu))
    assert detect(Config(), training_flops=1e20, stored=asdict(now)) == now
