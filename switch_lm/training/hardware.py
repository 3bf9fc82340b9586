"""How a run computes on this machine: device, precision, and whether compiling pays. Stored with the run."""

import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from switch_lm.config.keys import ConfigError
from switch_lm.config.limits import memory_bytes, num_cores
from switch_lm.config.rules import show
from switch_lm.config.schema import Config
from switch_lm.model import devices

# Compiling takes half a minute on two CPU cores. It saves a fifth of a step in bf16, whose elementwise work is then in
# one pass, and a tenth in float32, in which that stays in the cache anyway. So it pays above about this much work.
COMPILE_PAYS_FLOPS = {"bf16": 2e13, "fp32": 3.5e13}
GPU_COMPILE_PAYS_FLOPS = 4e15  # an H200 took 21 s to compile, and in 2.2e15 it saved less than 12 s


@dataclass(frozen=True)
class Hardware:
    """How a run computes, and why."""

    device: str  # cpu, cuda or mps
    precision: str  # bf16 or fp32
    compile: bool
    precision_reason: str
    compile_reason: str
    name: str
    threads: int  # of each process
    processes: int = 1


def compile_blocks(model: nn.Module) -> None:
    """Compiles the model's blocks at their first call: one graph serves all blocks of a kind."""
    torch.compiler.reset()  # an earlier run in this process leaves its graphs
    for block in model.get_submodule("blocks").children():
        compile_module(block)


def compile_module(module: nn.Module) -> None:
    """Compiles a module at its first call, for inputs of one shape.

    On a CPU random numbers remain torch's own: the compiler draws its own one by one, which takes longer than the
    products. On a GPU it draws them where they are needed, from torch's seed.
    """
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    module.compile(dynamic=False, options={"fallback_random": devices.is_cpu(device)})


def detect(config: Config, *, training_flops: float, stored: Mapping[str, Any] | None = None) -> Hardware:
    """Resolves `auto` in the trainer's device, precision and compile. `training_flops`: those of the whole run.

    `stored`: what the run, or its sweep, has used so far; it counts where the configuration leaves the choice, and what
    is missing in it is chosen again, as is a device that is not usable here, and on another device all but the
    precision. ConfigError if a device is asked for that is not usable here.
    """
    trainer, stored = config.trainer, stored or {}
    device = trainer.device
    if device == "auto":
        device = str(stored.get("device", "auto"))
        device = device if device in devices.NAMES and devices.is_usable(device) else devices.chosen()
    elif (problem := devices.refusal(device, key=f"trainer.device={device}", fix="use trainer.device=cpu")) is not None:
        raise ConfigError(problem)
    _require_one_for_each(device, trainer.processes)
    moved = device != stored.get("device")
    bf16, precision_reason = trainer.precision == "bf16", "as configured"
    if trainer.precision == "auto":
        bf16, precision_reason = fast_bf16(device)
        if "precision" in stored:  # also on another device: the weights belong to it
            bf16, precision_reason = stored["precision"] == "bf16", str(stored.get("precision_reason", "as before"))
    compiles, compile_reason = trainer.compile == "true", "as configured"
    if trainer.compile == "auto":
        if moved or "compile" not in stored:
            compiles, compile_reason = compiling_pays(device, training_flops, precision="bf16" if bf16 else "fp32")
        else:
            compiles, compile_reason = bool(stored["compile"]), str(stored.get("compile_reason", "as before"))
    processes, threads = trainer.processes, trainer.threads or all_threads()
    threads = max(1, threads // processes)
    if not trainer.threads and not moved and stored.get("processes", 1) == processes:
        threads = int(stored.get("threads") or threads)
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()}, {threads} thread{'' if threads == 1 else 's'}"
    )
    name += f" in each of {processes} processes" if processes > 1 and device == "cpu" else ""
    precision = "bf16" if bf16 else "fp32"
    return Hardware(device, precision, compiles, precision_reason, compile_reason, name, threads, processes)


def _require_one_for_each(device: str, processes: int) -> None:
    """ConfigError if so many processes cannot train on such a device here."""
    key, number = f"trainer.processes={processes}", torch.cuda.device_count() if device == "cuda" else processes
    if processes == 1:
        return
    if device == "mps" or not torch.distributed.is_available():
        what = "an MPS device trains alone" if device == "mps" else "this torch has no torch.distributed"
        raise ConfigError(f"{key}: {what}; use trainer.processes=1")
    if number < processes:
        fix = f"use trainer.processes={number}, or trainer.device=cpu"
        raise ConfigError(f"{key}: each needs a GPU of its own, and there are {number}; {fix}")


def all_threads() -> int:
    """As many as there are cores for this process, or fewer if the environment (OMP_NUM_THREADS) says so."""
    return min(torch.get_num_threads(), num_cores())


def one_thread_is_faster(config: Config, threads: int) -> bool:
    """Whether a feed-forward's product takes longer with so many threads than with one, each of three times.

    Takes tens of milliseconds, and decides nothing: the number of threads changes bits.
    """
    d_model, d_ff = config.model.d_model, config.model.d_ff
    rows = min(config.data.batch_size * config.model.context_length, 5 * 10**8 // (d_model * d_ff) + 1)
    x_ND, w_DF = torch.ones(rows, d_model), torch.ones(d_model, d_ff)

    def seconds(number: int) -> float:
        torch.set_num_threads(number)
        x_ND @ w_DF  # wakes the threads
        start = time.perf_counter()
        x_ND @ w_DF
        return time.perf_counter() - start

    before = torch.get_num_threads()
    try:
        return all(seconds(threads) > 1.5 * seconds(1) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def require_memory(config: Config, device: str, vocab_size: int) -> None:
    """ConfigError if what a step is sure to keep does not fit: the system would kill the process silently.

    Those are weights, their averages, gradients and the optimizer's state; and of each token its logits with their
    gradient, and in bf16 the inputs of each block's matrices. Each process has weights of its own, and each GPU one.
    """
    model, on_gpu = config.model, device == "cuda"
    num_params, copies = model.num_params(vocab_size, config.router), 1 if on_gpu else config.trainer.processes
    tokens = copies * config.rows_per_process * model.context_length
    trained = {  # of which there are gradients and states
        "all": num_params,
        "router": model.num_switch_layers * config.router.num_params(model.d_model, model.num_experts),
        "experts": model.num_switch_layers * model.num_experts * 2 * model.d_model * model.d_ff,
    }[config.train_only]
    needed = 4 * copies * num_params * (1 + len(config.optim.averages))
    needed += 4 * copies * trained * (1 + config.optim.states_per_param)
    needed += tokens * (8 * vocab_size + 2 * model.num_layers * (model.d_model + model.d_ff))
    there = torch.cuda.get_device_properties(device).total_memory if on_gpu else memory_bytes()
    if needed > there:
        raise ConfigError(
            f"{num_params:,} parameters and steps of {tokens:,} characters need at least {needed / 2**30:,.0f} GiB of "
            f"memory, but {'the GPU' if on_gpu else 'this machine'} has {there / 2**30:,.1f} GiB; reduce "
            "model.d_ff, model.d_model, model.num_experts, model.num_layers or data.batch_size"
        )


def changes_bits(hardware: Hardware, stored: Mapping[str, Any]) -> str | None:
    """What makes a resumed run's bits differ from those of one that was not interrupted; None if nothing does."""
    now = {
        "trainer.compile": hardware.compile, "trainer.threads": hardware.threads,
        "trainer.processes": hardware.processes,
    }  # fmt: skip
    changed = [f"{key} was {show(then)}, now {show(value)}" for key, value in now.items()
               if (then := stored.get(key.rpartition(".")[2], value)) != value]  # fmt: skip
    changes = change_of_device(hardware, stored) or "; ".join(changed)  # on another device all is chosen again
    return f"{changes}: the result will not be bit-identical to that of an uninterrupted run" if changes else None


def change_of_device(hardware: Hardware, stored: Mapping[str, Any]) -> str | None:
    """From which device the run, or its sweep, moves to which; None if it stays."""
    if (then := stored.get("device", hardware.device)) == hardware.device:
        return None
    slow = hardware.device == "cpu" and hardware.precision == "bf16" and not fast_bf16("cpu")[0]
    note = ", where bf16 is slow without instructions for it" if slow else ""
    return f"trainer.device was {then} ({stored.get('name')}), now {hardware.device} ({hardware.name}){note}"


def fast_bf16(device: str) -> tuple[bool, str]:
    """Whether bf16 products are faster than fp32 ones there, and how we know."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False), "by the GPU's generation"
    if device == "mps":  # and older systems do not have it there at all
        return False, "nobody has measured bf16 on Apple silicon"
    # The public query, torch.cpu.get_capabilities, is missing in torch 2.9, the oldest that we accept.
    if torch.cpu._is_amx_tile_supported():
        return True, "the CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "the CPU has AVX512-BF16"
    return False, "the CPU has no bf16 instructions"


def compiling_pays(device: str, training_flops: float, *, precision: str) -> tuple[bool, str]:
    """Whether `torch.compile` can run here and earns back its start-up, and why."""
    if device == "mps":
        return False, "nobody has tried it on Apple silicon"
    on_gpu = device == "cuda"
    if training_flops < (GPU_COMPILE_PAYS_FLOPS if on_gpu else COMPILE_PAYS_FLOPS[precision]):
        return False, "the run is too short to earn it back"
    return compiler_of(device)


def compiler_of(device: str) -> tuple[bool, str]:
    """Whether what `torch.compile` needs is there, and what was found or has to be installed."""
    on_gpu = device == "cuda"
    if on_gpu and find_spec("triton") is None:
        return False, "triton is not installed"
    if on_gpu:  # triton compiles the launchers of its kernels, and looks for these
        language, package, gain = "C", "gcc", "faster steps"
        names = [chosen] if (chosen := os.environ.get("CC")) else ["gcc", "clang"]
    else:  # the one that torch looks for
        language, package, gain = "C++", "g++", "up to a quarter more speed"
        names = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    if (compiler := next(filter(shutil.which, names), None)) is None:
        where = f" (CXX={names[0]})" if not on_gpu and "CXX" in os.environ else ""
        return False, f"no {language} compiler was found{where}; install {package} for {gain}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return False, f"Python's C headers are missing; install python3-dev for {gain}"
    if not os.access(cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR", "."), os.W_OK):  # torch sets it when it loads
        return False, f"the compile cache {cache} is not writable; set TORCHINDUCTOR_CACHE_DIR to a folder that is"
    return True, f"{compiler} was found"
