"""Starts a run: from a configuration to what its result.json holds."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config
from switch_lm.storage import choice, run_folder
from switch_lm.text.corpus import require_given
from switch_lm.training.boards.registry import board_class
from switch_lm.training.signals import StopSignals


@survive_closed_pipe()
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
    import switch_lm.pages.quiet_matplotlib  # noqa: F401  Lightning loads matplotlib
    from switch_lm.training.prepare import prepare  # torch and Lightning are slow to import: not for --help and --cfg
    from switch_lm.training.run import fit

    with prepare(config, run, heading=heading, signals=signals or StopSignals(run.path)) as training:
        return fit(training)
