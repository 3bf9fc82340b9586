"""On what a run computes, and what is set in the C library and the compiler before training."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from conftest import folder_of
from rich.console import Console
from small_models import short_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from switch_lm.commandline.command import CommandError, compute_on, model_parser
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.measure.evaluation import EvaluationTally, nanogpt_estimates
from switch_lm.measure.tallies import DropTally, ValidationTally
from switch_lm.model import devices
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import HARDWARE, RunFolder
from switch_lm.training import hardware
from switch_lm.training.callbacks.compiling import CompiledBlocks
from switch_lm.training.hardware import GPU_COMPILE_PAYS_FLOPS, changes_bits, compile_module, compiling_pays, detect
from switch_lm.training.prepare import prepare
from switch_lm.training.signals import StopSignals
from switch_lm.training.start import train

FAULTS = """
import resource, sys, torch
from switch_lm.commandline.process import keep_freed_memory
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


def machine_with(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """One that has these devices beside its CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
    monkeypatch.setattr(devices, "try_out", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)


GPU = {"device": "cuda", "precision": "bf16", "compile": True, "threads": 64, "name": "a GPU"}


def test_what_was_typed_beats_what_is_stored_and_the_rest_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(monkeypatch)
    now = detect(Config(trainer=TrainerConfig(device="cpu", threads=3)), training_flops=0.0, stored=GPU)
    assert (now.device, now.threads, now.precision, now.compile) == ("cpu", 3, "bf16", False)
    assert "trainer.device was cuda (a GPU), now cpu (" in str(changes_bits(now, GPU))
    assert detect(Config(), training_flops=1e20, stored=asdict(now)) == now


STAYS = [("auto", "", "cuda mps", "cuda"), ("auto", "", "mps", "cpu"), ("mps", "", "mps", "mps"),
         ("auto", "mps", "cuda mps", "mps"), ("auto", "mps", "cuda", "cuda"), ("auto", "cuda", "mps", "cpu"),
         ("auto", "cpu", "cuda", "cpu"), ("cuda", "cpu", "cuda", "cuda")]  # fmt: skip


@pytest.mark.parametrize(("typed", "stored", "there", "expected"), STAYS)
def test_a_run_stays_on_its_device_if_that_is_there_and_no_other_is_asked_for(
    typed: str, stored: str, there: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(monkeypatch, *there.split())
    before = GPU | {"device": stored, "name": "then"} if stored else {}
    now = detect(Config(trainer=TrainerConfig(device=typed)), training_flops=0.0, stored=before)
    assert (now.device, now.threads) == (expected, 64 if stored == expected else torch.get_num_threads())
    changed = changes_bits(now, before) or ""  # it may name slow bf16, too
    assert changed.startswith(f"trainer.device was {stored} (then), now {expected} ({now.name})") == bool(changed)
    assert ("the result will not be bit-identical" in changed) == (stored not in ("", expected))


@pytest.mark.parametrize(("name", "kind"), [("cuda", "GPU"), ("mps", r"MPS device \(Apple silicon\)")])
def test_a_device_that_is_asked_for_and_not_there_is_refused_in_one_line_with_the_fix(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_with(monkeypatch)
    refusal = f"{name}: there is no usable {kind} here; "
    with pytest.raises(ConfigError, match=f"^trainer.device={refusal}use trainer.device=cpu$"):
        detect(Config(trainer=TrainerConfig(device=name)), training_flops=0.0)
    with pytest.raises(CommandError, match=f"^--device {refusal}give --device cpu$"):
        compute_on(model_parser("", "", {"": ""}).parse_args(["--device", name]))


def test_a_gpu_that_torch_sees_and_cannot_use_is_left_alone_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    machine_with(monkeypatch, "cuda")
    monkeypatch.setattr(devices, "try_out", fail)
    reason = "(CUDA error: no kernel image is available)"
    assert detect(Config(), training_flops=0.0).device == "cpu"
    assert compute_on(model_parser("", "", {"": ""}).parse_args([])) == "cpu"
    assert (
        capsys.readouterr().err
        == f"warning: the GPU cannot be used {reason}: computing on the CPU; free it or install a torch for it\n" * 2
    )
    with pytest.raises(ConfigError) as refused:
        detect(Config(trainer=TrainerConfig(device="cuda")), training_flops=0.0)
    assert str(refused.value) == f"trainer.device=cuda: there is no usable GPU here {reason}; use trainer.device=cpu"


def test_on_apple_silicon_a_run_is_not_compiled_and_a_command_in_float64_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine_with(monkeypatch, "mps")
    now = detect(Config(trainer=TrainerConfig(device="mps")), training_flops=1e20)
    assert (now.precision, now.compile) == ("fp32", False)
    options = model_parser("", "", {"": ""}).parse_args(["--device", "mps"])
    assert (compute_on(options), compute_on(options, in_float64=True)) == ("mps", "cpu")
    assert capsys.readouterr().err == "on the CPU: this is computed in float64, which MPS does not have\n"


NO_COMPILER, SHORT = "no C compiler was found; install gcc for faster steps", "the run is too short to earn it back"
COMPILES = [(0.9, "", "triton gcc", SHORT), (1.1, "", "gcc", "triton is not installed"),
            (1.1, "", "triton g++", NO_COMPILER), (1.1, "none", "triton gcc", NO_COMPILER),
            (1.1, "mine", "triton mine", "mine was found"), (1.1, "", "triton clang", "clang was found")]  # fmt: skip


@pytest.mark.parametrize(("chosen", "named"), [("g++", None), ("", ""), ("no", " (CXX=no)")])
def test_a_cpu_compiles_with_the_compiler_that_torch_takes_and_in_vain_says_what_to_install(
    chosen: str, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = None if named is None else f"no C++ compiler was found{named}; install g++ for up to a quarter more speed"
    monkeypatch.setattr("os.environ", {"CXX": chosen} if chosen else {})
    monkeypatch.setattr(shutil, "which", lambda name: name if name == (chosen if not lacks else "clang++") else None)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # Python.h
    assert compiling_pays("cpu", 1e20, precision="fp32") == (not lacks, lacks or "g++ was found")
    reasons: list[str] = []
    fails = {"warm_up.side_effect": OSError("its words"), "config.trainer.max_steps": 1}
    module = MagicMock(device=torch.device("cpu"), **fails)
    CompiledBlocks(Console(quiet=True), reasons.append).on_train_start(MagicMock(global_step=0), module)
    torch.compiler.set_stance("default")
    assert reasons == [f"failed: {lacks or 'its words'}"]


@pytest.mark.parametrize(("runs", "compiler", "installed", "expected"), COMPILES)
def test_a_gpu_compiles_long_runs_where_triton_and_its_c_compiler_are_there(
    runs: float, compiler: str, installed: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(hardware, "find_spec", lambda name: name if name in installed.split() else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed.split() else None)
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # Python.h
    assert compiling_pays("cuda", runs * GPU_COMPILE_PAYS_FLOPS, precision="bf16") == (
        expected.endswith(" was found"),
        expected,
    )


def test_only_on_a_cpu_are_random_numbers_kept_from_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **options: chosen.append(options["options"]))
    compile_module(torch.nn.Linear(1, 1))
    compile_module(torch.nn.Linear(1, 1, device="meta"))
    assert chosen == [{"fallback_random": True}, {"fallback_random": False}]


def test_a_job_of_a_sweep_that_began_on_a_gpu_continues_on_the_cpu_with_one_line(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine_with(monkeypatch)
    monkeypatch.setattr(hardware, "fast_bf16", lambda _: (False, ""))
    RunFolder(tmp_path).write_json(HARDWARE, GPU)
    job = RunFolder(tmp_path / "0", sweep=tmp_path)
    with prepare(config, job, signals=StopSignals(job.path)) as training:
        assert (training.hardware.device, training.hardware.precision) == ("cpu", "bf16")
    (line,) = capsys.readouterr().err.splitlines()
    assert all(words in line for words in ("cuda (a GPU)", "now cpu", "bf16 is slow", "not be bit-identical"))


class NoFloat64(TorchDispatchMode):
    """Follows what is computed from weights, as if it lay on a device of its own until `cpu()`: no float64 there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.there: dict[int, Any] = {}  # storages, kept so that none gets the address of another
        self.widened: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), result))
        if any(isinstance(x, torch.nn.Parameter) or x.untyped_storage()._cdata in self.there for x in inputs):
            self.there |= {x.untyped_storage()._cdata: x.untyped_storage() for x in outputs}
            self.widened += [str(func) for x in outputs if x.dtype == torch.float64]
        return result

    def read(self, x: Tensor) -> Tensor:
        copy = x.detach().clone()
        self.there.pop(copy.untyped_storage()._cdata, None)
        return copy


def test_a_run_and_what_continues_one_take_no_float64_to_a_device_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = NoFloat64()
    monkeypatch.setattr(Tensor, "cpu", lambda x: mode.read(x))
    monkeypatch.setattr(devices, "sum_dtype", lambda device: torch.float32)
    config = short_run(tmp_path)
    config.logger.sample_length, config.health.every = 3, 1
    validation, drops, at_capacity = ValidationTally(), DropTally(num_layers=2), EvaluationTally()
    with mode:
        train(config)
        content = checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")
        validation.load_state_dict(content["validation"])
        drops.load_state_dict(content["drops"])
        at_capacity.sums = torch.zeros(5).double()  # as a GPU leaves it
        model = checkpoint.read_model(folder_of(config))[0]
        output = model(ids_BS := torch.arange(24).view(2, 12) % 9)
        validation.add(output.logits.mean(), ids_BS.numel(), output.routings)
        drops.add(output.routings)
        at_capacity.add(output, ids_BS)
        how: dict[str, Any] = {"batch_size": 2, "capacity_factor": 1.0, "precision": "fp32"}
        nanogpt_estimates(model, ids_BS.flatten(), num_draws=1, seed=0, **how)
    assert mode.there and mode.widened == []
