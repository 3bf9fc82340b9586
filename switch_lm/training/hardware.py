"""How a run computes on this machine: device, precision, and whether compiling pays. Stored with the run."""

import os
import platform
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import show
from switch_lm.config.schema import Config

# Compiling costs half a minute on two CPU cores and saves a third of a step, so it pays above about this much work.
COMPILE_PAYS_FLOPS = 1.2e13


@dataclass(frozen=True)
class Hardware:
    """How a run computes, and why."""

    device: str  # cpu or cuda
    precision: str  # bf16 or fp32
    compile: bool
    precision_reason: str
    compile_reason: str
    name: str
    threads: int


def compile_blocks(model: nn.Module) -> None:
    """Compiles the model's blocks at their first call: one graph serves all blocks of a kind."""
    torch.compiler.reset()  # an earlier run in this process leaves its graphs
    for block in model.get_submodule("blocks").children():
        compile_module(block)


def compile_module(module: nn.Module) -> None:
    """Compiles a module at its first call, for inputs of one shape.

    Random numbers remain torch's own: the compiler draws its own one by one, which takes longer than the products.
    """
    module.compile(dynamic=False, options={"fallback_random": True})


def detect(config: Config, *, training_flops: float, stored: Mapping[str, Any] | None = None) -> Hardware:
    """Resolves `auto` in the trainer's device, precision and compile. `training_flops`: those of the whole run.

    `stored`: what the run, or its sweep, has used so far; it counts where the configuration leaves the choice, and what
    is missing in it is chosen again. ConfigError if a device that is asked for, or was used, does not exist.
    """
    trainer, stored = config.trainer, stored or {}
    device = trainer.device if trainer.device != "auto" else stored.get("device")
    if device == "cuda" and not torch.cuda.is_available():
        if trainer.device == "cuda":
            raise ConfigError("trainer.device=cuda: there is no usable GPU here; use trainer.device=cpu")
        raise ConfigError(
            f"this run began on a GPU ({stored.get('name')}), and none is usable here; continue on the CPU with "
            "trainer.device=cpu (the result will differ in its last bits), or on a machine with a GPU"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    moved = device != stored.get("device")
    bf16, precision_reason = trainer.precision == "bf16", "as configured"
    if trainer.precision == "auto":
        bf16, precision_reason = fast_bf16(device)
        if "precision" in stored:  # also on another device: the weights belong to it
            bf16, precision_reason = stored["precision"] == "bf16", str(stored.get("precision_reason", "as before"))
    compiles, compile_reason = trainer.compile == "true", "as configured"
    if trainer.compile == "auto":
        if moved or "compile" not in stored:
            compiles, compile_reason = compiling_pays(device, training_flops)
        else:
            compiles, compile_reason = bool(stored["compile"]), str(stored.get("compile_reason", "as before"))
    threads = trainer.threads or int(stored.get("threads") or torch.get_num_threads())
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {threads} threads"
    return Hardware(device, "bf16" if bf16 else "fp32", compiles, precision_reason, compile_reason, name, threads)


def changes_bits(hardware: Hardware, stored: Mapping[str, Any]) -> str | None:
    """What makes a resumed run's bits differ from those of one that was not interrupted; None if nothing does."""
    now = {"trainer.device": hardware.device, "trainer.compile": hardware.compile, "trainer.threads": hardware.threads}
    changed = [f"{key} was {show(then)}, now {show(value)}" for key, value in now.items()
               if (then := stored.get(key.rpartition(".")[2], value)) != value]  # fmt: skip
    rule = "the result will not be bit-identical to that of an uninterrupted run"
    return f"{'; '.join(changed)}: {rule}" if changed else None


def fast_bf16(device: str) -> tuple[bool, str]:
    """Whether bf16 products are faster than fp32 ones there, and how we know."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False), "by the GPU's generation"
    # The public query, torch.cpu.get_capabilities, is missing in torch 2.9, the oldest that we accept.
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512-BF16"
    return False, "the CPU has no bf16 instructions"


def compiling_pays(device: str, training_flops: float) -> tuple[bool, str]:
    """Whether `torch.compile` can run here and earns back its start-up, and why."""
    if training_flops < COMPILE_PAYS_FLOPS:
        return False, "the run is too short to earn it back"
    if device == "cuda":
        installed = find_spec("triton") is not None
        return installed, f"triton is {'' if installed else 'not '}installed"
    compiler = next(filter(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")), None)
    if compiler is None:
        return False, "no C++ compiler was found; install g++ for about a third more speed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return False, "Python's C headers are missing; install python3-dev for about a third more speed"
    return True, f"{compiler} was found"
