"""A run or a command restores the process, however it ends; a run that is only prepared leaves nothing behind."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import same
from conftest import TEXT, MakeRun, checkpoint_of, folder_of, tiny_model
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from switch_lm import check, evaluate, fit, generate, inspect
from switch_lm.commandline.signals import SIGNALS
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.storage import checkpoint
from switch_lm.storage.choice import choose
from switch_lm.storage.locks import Lock
from switch_lm.storage.run_folder import Stopped
from switch_lm.training import hardware
from switch_lm.training import prepare as preparing
from switch_lm.training.module import SwitchModule
from switch_lm.training.signals import StopSignals
from switch_lm.training.start import train

SMALL = ["data.path=text.txt", "model.num_layers=1", "model.d_model=16", "model.num_heads=2", "model.d_ff=16"]
SMALL += ["model.context_length=8", "data.batch_size=4", "trainer.device=cpu"]


def process_state() -> dict[str, Any]:
    """What a run or a command might change, except the compiler's stance, which shows in what it compiles."""
    logs = [logging.getLogger(name) for name in ("", "switch_lm", "lightning", "lightning.pytorch")]
    return {
        "threads": torch.get_num_threads(),
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "logs": [(log.level, log.propagate, list(log.handlers)) for log in logs],
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "defaults": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()),
        "streams": (sys.stdout, sys.stderr),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
    }


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("planted")


def in_validation(config: Config, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SwitchModule, "validation_step", fails)


def before_the_first_step(config: Config, patch: pytest.MonkeyPatch) -> None:
    def changes(*_: Any, **__: Any) -> None:  # as a plugin may
        random.seed(1)
        np.random.seed(1)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        os.environ["PLANTED"] = "1"
        fails()

    patch.setattr(preparing, "TextData", changes)
    patch.setattr(ctypes, "CDLL", changes)  # the C library's memory could not be set back


def by_the_configuration(config: Config, patch: pytest.MonkeyPatch) -> None:
    Path(str(config.data.path)).write_text("abc" * 9)


def by_its_time_limit(config: Config, patch: pytest.MonkeyPatch) -> None:
    config.trainer.max_time = "00:00:01"
    patch.setattr("switch_lm.config.schema.TrainerConfig.max_seconds", lambda self: 0.0)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (None, None),
        (in_validation, RuntimeError),
        (before_the_first_step, RuntimeError),
        (by_the_configuration, ConfigError),
        (by_its_time_limit, Stopped),
    ],
)
def test_a_run_restores_the_process(
    end: Callable[[Config, pytest.MonkeyPatch], None] | None,
    error: type[BaseException] | None,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.trainer.threads = 2
    before = process_state()
    if end is None or error is None:
        train(config)
    else:
        end(config, monkeypatch)
        with pytest.raises(error):
            train(config)
    assert process_state() == before
    assert folder_of(config).exists() == (end not in (before_the_first_step, by_the_configuration))


def test_fit_trains_from_overrides_and_restores_the_process_in_a_block_of_hydra_too(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And it returns the run that it trained, though no name was given."""
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    place, sizes = f"data.path={config.data.path}", [word for word in SMALL if not word.startswith("data.path")]
    of_run = ["trainer.max_steps=4", "trainer.val_every=2", "optim.warmup_steps=1", "trainer.compile=false"]

    class Own(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            pass

    Plugins.instance().register(Own)
    with initialize_config_dir(str(tmp_path / "own"), version_base="1.3"):
        before = process_state() | {"folder": Path.cwd()}, Plugins.instance().discover()
        run = fit([place, *sizes, *of_run, "logger=csv", "logger.sample_length=0", "trainer.threads=2"])
        assert (process_state() | {"folder": Path.cwd()}, Plugins.instance().discover()) == before
        assert GlobalHydra.instance().is_initialized()
    assert run.history()["val/loss"].step.tolist() == [2, 4]
    assert [folder.name for folder in (tmp_path / "outputs" / "runs").iterdir()] == [run.path.parts[-3]]
    with pytest.raises(ConfigError, match=r"did you mean model\.num_experts"):
        fit(["model.num_expert=4"])


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (generate.main, ["--length", "3"]),
        (evaluate.main, []),
        (inspect.main, []),
        (check.main, ["--steps", "0", *SMALL, "trainer.threads=3"]),
        (generate.main, ["--run", "nowhere"]),
    ],
)
def test_a_command_restores_the_process(
    main: Callable[[list[str]], int], arguments: list[str], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("switch_lm.certificate.certify.certify", lambda *_, **__: [])  # which takes long
    folder = make_run("tiny", text=TEXT * 3)
    content = checkpoint_of(tiny_model(), TEXT * 3, "fp32") | {"global_step": 1}
    checkpoint.write(content, folder / "checkpoints" / "best.ckpt")
    torch.set_num_threads(2)
    try:
        before = process_state()
        assert main(arguments) == ("nowhere" in arguments)
        assert process_state() == before
    finally:
        torch.set_num_threads(1)


def test_after_a_run_that_failed_in_validation_the_next_equals_a_run_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []  # in this job
    before_first_step: list[int] = []
    warm_up = SwitchModule.warm_up

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def counted(module: SwitchModule) -> None:
        warm_up(module)
        before_first_step.append(len(compiled))

    monkeypatch.setattr(SwitchModule, "warm_up", counted)
    monkeypatch.setattr(hardware, "compile_module", lambda module: module.compile(backend=backend, dynamic=False))
    config.trainer.compile = "true"
    states = []
    for name in ("alone", "after"):
        if name == "after":
            with monkeypatch.context() as patch:
                in_validation(config, patch)
                with pytest.raises(RuntimeError, match="planted"):
                    train(replace(config, name="failed"))
        compiled.clear()
        before_first_step.clear()
        job = replace(config, name=name)
        train(job)
        assert before_first_step == [len(compiled)] != [0]  # its steps do not compile: their seconds are compared
        states.append(checkpoint.read(folder_of(job) / "checkpoints" / "last.ckpt"))
    for key in ("state_dict", "optimizer_states"):
        assert same(states[0][key], states[1][key]), key


def test_a_run_that_is_prepared_and_never_fitted_leaves_no_folder_and_no_lock(config: Config) -> None:
    run = choose(config)
    with preparing.prepare(config, run, signals=StopSignals(run.path)):
        assert not folder_of(config).exists()
        assert train(config)["steps"] == 12  # at once: nothing is locked


def test_a_lock_that_cannot_be_taken_leaves_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def interrupted(descriptor: int, how: int) -> None:
        opened.append(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Lock(tmp_path, "one process in a folder")
    with pytest.raises(OSError):
        os.fstat(opened[0])
