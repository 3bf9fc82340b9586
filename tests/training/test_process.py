"""A run among other processes: started by srun or torchrun, on a busy machine, with too little memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import folder_of
from small_models import short_run

from switch_lm import train as command
from switch_lm.commandline.command import finish
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.model.experts import Experts
from switch_lm.storage.run_folder import Stopped, TrainingError
from switch_lm.training import hardware
from switch_lm.training.boards.tensorboard import EVENTS
from switch_lm.training.signals import StopSignals
from switch_lm.training.start import train

# As srun sets them in the fourth of four processes that have nothing to do with each other, and a Lightning option.
FOREIGN = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3",
           "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_NODEID": "0",
           "PL_TRAINER_FAST_DEV_RUN": "1"}  # fmt: skip


def test_a_command_among_others_says_a_word_before_torch_spins_briefly_and_writes_every_file(tmp_path: Path) -> None:
    config = short_run(tmp_path)
    keys = ["experiment=smoke", "trainer.max_steps=2", "trainer.val_every=2", "optim.warmup_steps=1"]
    keys += [f"data.path={config.data.path}", f"outputs={config.outputs}", "name=run", "logger.sample_length=0"]
    done = subprocess.run([sys.executable, "-m", "switch_lm.train", *keys], capture_output=True, text=True,
                          env=os.environ | FOREIGN | {"OMP_DISPLAY_ENV": "VERBOSE"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    word, *rest = done.stderr.splitlines()
    assert word == "loading torch, which takes some seconds ..."
    assert any("GOMP_SPINCOUNT = '4000'" in line for line in rest) or "GOMP" not in done.stderr
    assert len(list(folder_of(config).glob(EVENTS))) == 1
    assert (folder_of(config) / "result.json").is_file()


def test_the_environment_is_as_before_and_what_was_set_there_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert finish(lambda: int(os.environ["GOMP_SPINCOUNT"])) == 4000
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert finish(lambda: int("GOMP_SPINCOUNT" in os.environ)) == 0


def test_a_sweep_that_torchrun_starts_is_refused_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short_run(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        sys, "argv", ["train", "-m", "seed=1,2", f"outputs={config.outputs}", f"data.path={config.data.path}"]
    )
    for rank, words in enumerate(["torchrun started 2 processes, but each job starts its own: use python -m", ""]):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit, match=r"^2$"):
            command.main()
        assert words in (said := capsys.readouterr().err) and bool(said) == bool(words)
    with pytest.raises(ConfigError, match=r"^torchrun started 2 processes.* trainer.processes=2$"):
        train(config)
    assert not Path(config.outputs).exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert train(config)["steps"] == 2 and os.environ["WORLD_SIZE"] == "1"


def test_what_certainly_does_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_run(tmp_path)
    model, tokens = config.model, config.data.batch_size * config.model.context_length
    needed = 12 * model.num_params(10, config.router)  # weights, gradients, Muon's momentum; ten characters
    needed += tokens * (2 * 4 * 10 + 2 * model.num_layers * (model.d_model + model.d_ff))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: needed - 1)
    with pytest.raises(ConfigError, match=r"^[\d,]+ parameters and steps of [\d,]+ characters need .*batch_size$"):
        train(config)
    assert not Path(config.outputs).exists()
    monkeypatch.setattr(hardware, "memory_bytes", lambda: needed)
    assert train(config)["steps"] == 2


TORCHS = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nException raised from alloc"


@pytest.mark.parametrize("error", [RuntimeError(TORCHS), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_an_allocation_that_fails_is_one_line_with_the_fix(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise error

    words = r"memory ran out \((\[enforce.* memory|an allocation failed|CUDA out of memory\.)\); "
    monkeypatch.setattr(Experts, "cached", fail)
    with pytest.raises(TrainingError, match=rf"^{words}make data.batch_size, .* smaller\nThere is no checkpoint yet"):
        train(short_run(tmp_path))
    assert finish(fail) == 1
    assert re.fullmatch(rf"{words}use a smaller input, or free memory\n", capsys.readouterr().err)


def test_another_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        finish(lambda: 1 // 0)


@pytest.mark.parametrize(("slowdown", "said"), [(1.4, False), (1.6, True)])
def test_that_one_thread_would_be_faster_is_only_said(
    slowdown: float, said: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) * (slowdown if torch.get_num_threads() > 1 else 1.0))
    assert hardware.one_thread_is_faster(config, 2) == said
    assert torch.get_num_threads() == 1


def test_threads_are_at_most_the_cores(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(hardware, "num_cores", lambda: 3)
    assert hardware.detect(config, training_flops=0.0).threads == (config.trainer.threads or 3)


def test_a_limit_of_cpu_time_comes_every_second_and_does_not_end_a_run_that_saves(tmp_path: Path) -> None:
    with StopSignals(tmp_path) as signals:
        signals.nothing_to_save = False
        for _ in range(3):
            signal.raise_signal(signal.SIGXCPU)
        assert signals.received == signal.SIGXCPU
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
