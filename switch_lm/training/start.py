"""Starts a run: from a configuration to what its result.json holds."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.process import environment, first_word
from switch_lm.config.keys import ConfigError
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config
from switch_lm.storage import choice, run_folder
from switch_lm.text.corpus import require_given
from switch_lm.training.boards.registry import board_class
from switch_lm.training.signals import StopSignals

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
) -> dict[str, Any]:
    """Trains as configured and returns what result.json holds. Callable from Python.

    For a sweep's jobs: `folder`; `heading`, the label of a progress bar that replaces the run's own output; and
    `signals`, which are caught already.

    ConfigError if the configuration breaks a rule (before anything is fetched or written); TextError or another
    CorpusError if there is no text; TrainingError if training fails; Stopped, which is no Exception, after a signal or
    `trainer.max_time`.
    """
    refuse_torchrun()
    load_plugins()  # a launcher's worker has not loaded them yet
    config = resolve(cfg)
    for name in config.logger.boards:
        board_class(name).require()
    run = choice.choose(config) if folder is None else choice.of_job(folder, config)
    if run.note is not None:
        print(f"resume=auto: {run.note}", file=sys.stderr)
    if (finished := run.read_json(run_folder.RESULT)) is not None:
        return finished
    require_given(config.data.path)
    if heading is None and config.logger.progress != "none":
        first_word()
    with _alone():
        import switch_lm.pages.quiet_matplotlib  # noqa: F401  Lightning loads matplotlib
        from switch_lm.training.prepare import prepare  # torch and Lightning are slow to import: not for --help, --cfg
        from switch_lm.training.run import fit

        with prepare(config, run, heading=heading, signals=signals or StopSignals(run.path)) as training:
            return fit(training)


def refuse_torchrun() -> None:
    """ConfigError where torchrun started several processes to train together."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (number := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(
            f"torchrun started {number} processes, but a run is one process: use python -m switch_lm.train"
        )


@contextmanager
def _alone() -> Iterator[None]:
    """In its block the environment says nothing of other processes, such as those that srun or mpirun started."""
    foreign = {name: os.environ.pop(name) for name in list(os.environ) if FOREIGN.fullmatch(name)}
    try:
        yield
    finally:
        os.environ.update(foreign)
