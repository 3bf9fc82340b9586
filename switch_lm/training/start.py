"""Starts a run: from a configuration to what its result.json holds."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.process import environment, first_word
from switch_lm.config.keys import ConfigError
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import not_in_sweep, resolve
from switch_lm.config.schema import Config
from switch_lm.optim.schedule import nothing_to_learn
from switch_lm.storage import choice, run_folder
from switch_lm.storage.run_folder import RunFolder
from switch_lm.text.splits import require_text
from switch_lm.training.boards.registry import board_class
from switch_lm.training.parallel import outside
from switch_lm.training.signals import StopSignals

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # several processes: torch would warn that it looks for unused parameters
# Of other programs' processes. Lightning would take a run whose rank is not 0 for a part of another, and leave out its
# files; and it would read its own options.
FOREIGN = re.compile(r"(.*_)?(RANK|PROCID|LOCALID|WORLD_SIZE)|PL_.*")


@survive_closed_pipe()
@environment()
def train(
    cfg: DictConfig | Config,
    *,
    folder: Path | None = None,
    heading: str | None = None,
    signals: StopSignals | None = None,
    started: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains as configured and returns what result.json holds. Callable from Python.

    `overrides`: those given, after which the folder of a run without a name is called; None: after its router.

    For a sweep's jobs: `folder`; `heading`, the label of a progress bar that replaces the run's own output; and
    `signals`, which are caught already. `started`: when the command began, by `time.monotonic`; None: now.

    ConfigError if the configuration breaks a rule (before anything is fetched or written); TextError or another
    CorpusError if there is no text; TrainingError if training fails; Stopped, which is no Exception, after a signal or
    `trainer.max_time`. In all but the first of the processes that torchrun or srun started for a run: an empty result.
    """
    started = time.monotonic() if started is None else started
    config = _resolved(cfg, folder)
    meeting = None
    if (part := outside.part_of(config, in_sweep=folder is not None)) is not None:
        if part.rank > 0:
            with _alone(), environment(**QUIET):
                outside.join(part, config)
            return {}
        with environment(**QUIET):  # torch reads it when it is imported, here
            meeting = outside.meet(part, config)
    config, run = _chosen(config, folder, overrides)
    if not run.begins_leg and (finished := run.read_json(run_folder.RESULT)) is not None:
        return finished
    require_text(config.data.path, config.data.text, config.data.split, config.data.hold_out)
    if heading is None and config.logger.progress != "none":
        first_word()
    with _alone(), environment(**QUIET if config.trainer.processes > 1 else {}):
        from switch_lm.training.run import fit

        with _prepared(config, run, signals or StopSignals(run.path), heading=heading, started=started) as training:
            return fit(training, meeting)


@survive_closed_pipe()
@environment()
def plan(cfg: DictConfig | Config, *, started: float | None = None, overrides: Mapping[str, Any] | None = None) -> None:
    """Prints what `train` would do and how long that takes here. Fetches the text, and writes nothing else.

    `started`, `overrides` and errors: those of `train`.
    """
    config = _resolved(cfg, None)
    if (part := outside.part_of(config, in_sweep=False)) is not None and part.rank > 0:
        return
    config, run = _chosen(config, None, overrides)
    with ready(config, run, started=started) as training:
        from switch_lm.training.forecast import print_with_time

        print_with_time(training)


def scratch_model(config: Config, steps: int, label: str = "") -> tuple[Any, Any]:
    """A `SwitchLM` after `steps` steps in a folder that is removed, and its `Header`; after none as initialised.

    `label`: what its progress bar and its line on stderr begin with.
    """
    from switch_lm.storage.checkpoint import Header, read_model

    most = max(1, steps)
    trainer = replace(config.trainer, max_steps=most, val_every=most, keep_best=1, max_time=None, budget=None)
    config = replace(config, trainer=trainer, logger=replace(config.logger, boards={}, sample_length=0))
    heading = f"{label}training {steps} steps"
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        if steps:
            print(f"{heading} ...", file=sys.stderr)
            train(config, folder=run, heading=heading)
            return read_model(run)
        from switch_lm.training.prepare import prepare

        with prepare(config, choice.of_job(run, config), signals=StopSignals(run), heading=heading) as training:
            return training.module.model.eval(), Header(**training.module.header)


@contextmanager
def ready(config: Config, run: RunFolder, *, started: float | None = None) -> Iterator[Any]:
    """The `Training` of a run, for what only looks at it. `started`: that of `train`."""
    started = time.monotonic() if started is None else started
    require_text(config.data.path, config.data.text, config.data.split, config.data.hold_out)
    first_word()
    with _alone():
        config = replace(config, logger=replace(config.logger, progress="lines"))
        with _prepared(config, run, StopSignals(run.path), started=started, compiles=False) as training:
            yield training


def _resolved(cfg: DictConfig | Config, folder: Path | None) -> Config:
    """The configuration, which was checked. `folder`: of a sweep's job."""
    load_plugins()  # a launcher's worker has not loaded them yet
    config = resolve(cfg)
    if folder is not None and (problem := not_in_sweep(config)) is not None:
        raise ConfigError(problem)
    for name in config.logger.boards:
        board_class(name).require()
    return config


def _chosen(config: Config, folder: Path | None, overrides: Mapping[str, Any] | None) -> tuple[Config, RunFolder]:
    """The configuration, with the legs of the run it continues, and the run's folder, which is not made yet."""
    run = choice.choose(config, overrides) if folder is None else choice.of_job(folder, config)
    if run.note is not None:
        print(f"resume=auto: {run.note}", file=sys.stderr)
    config = replace(config, optim=replace(config.optim, legs=list(run.legs or config.optim.legs)))
    sizes = {"max_steps": config.trainer.max_steps, "d_model": config.model.d_model}
    if run.begins_leg and (problem := nothing_to_learn(config.optim, **sizes)):
        raise ConfigError(problem)
    return config, run


@contextmanager
def _prepared(
    config: Config, run: RunFolder, signals: StopSignals, *, compiles: bool = True, started: float, **shown: Any
) -> Iterator[Any]:
    """The run, ready for its first step, in as many as its budget allows. `compiles`: whether a budget may."""
    import switch_lm.pages.quiet_matplotlib  # noqa: F401  Lightning loads matplotlib
    from switch_lm.training.prepare import prepare  # torch and Lightning are slow to import: not for --help, --cfg

    again = config.trainer.budget is not None
    if again:
        from switch_lm.training.budget import within_budget

        with prepare(config, run, signals=signals, started=started, **shown) as training:
            config = within_budget(training, compiles=compiles)
        del training  # its memory
    with prepare(config, run, signals=signals, started=started, again=again, **shown) as training:
        yield training


@contextmanager
def _alone() -> Iterator[None]:
    """In its block the environment says nothing of other processes, such as those that srun or mpirun started."""
    foreign = {name: os.environ.pop(name) for name in list(os.environ) if FOREIGN.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(foreign)
