"""Where a benchmark runs: processor, threads, load and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from switch_lm.storage.provenance import commit, versions
from switch_lm.training.hardware import fast_bf16

PEERS = ("labml-nn", "transformers", "st-moe-pytorch", "mixture-of-experts")


def machine() -> dict[str, str]:
    """As it is now: the load average before the first block shows whether the machine was quiet."""
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "instructions": instructions(),
        "load at the start": load,
        **versions(),
        **{name: _version(name) for name in PEERS},
        "commit": str(commit()),
    }


def instructions() -> str:
    """Such as "AVX2, no bf16 instructions" or "AVX512, AMX": what torch's kernels use, and what bf16 has."""
    return f"{torch.backends.cpu.get_cpu_capability()}, {fast_bf16('cpu')[1].removeprefix('the CPU has ')}"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
