"""Trains a model: `python -m switch_lm.train [key=value ...]`, `-m` for a sweep, `--plan` to see how long it takes."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.process import BEGAN, environment, keep_freed_memory
from switch_lm.commandline.signals import ended_by_signals
from switch_lm.config import overrides as cli
from switch_lm.config.keys import NAME, ConfigError
from switch_lm.config.late_help import late_help
from switch_lm.config.paths import config_dir, expanded
from switch_lm.config.plugins import command_line
from switch_lm.config.rules import SET_BY_BUDGET, refusal
from switch_lm.storage.choice import GOAL, own_goal
from switch_lm.storage.files import remedy
from switch_lm.storage.run_folder import Stopped, TrainingError, plugins_of, stated
from switch_lm.storage.runs import OUTPUTS
from switch_lm.sweep import jobs as sweep
from switch_lm.sweep import launchers
from switch_lm.sweep.grid import as_given
from switch_lm.text.given import CorpusError, TextError
from switch_lm.training.parallel.outside import is_heard
from switch_lm.training.start import plan, train

PLAN = "--plan"  # prints what would be done and how long it takes here, and does nothing


@survive_closed_pipe()
@ended_by_signals()
# With this variable Hydra raises errors instead of printing its own text and leaving.
@environment(HYDRA_FULL_ERROR="1")
def main() -> None:
    """The command. Exit code 2 and one message for a bad configuration, 1 if training failed, 128 + n for signal n."""
    failures: list[Exception] = []
    planned, given = PLAN in sys.argv[1:], [argument for argument in sys.argv[1:] if argument != PLAN]
    act = plan if planned else train

    def run_job(cfg: DictConfig) -> float | None:
        """What Hydra calls, once for a run and once for each job of a sweep, in a launcher's worker too."""
        keep_freed_memory()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.run_job(cfg, train)
        try:
            overrides = sweep.as_mapping(as_given(HydraConfig.get().overrides.task))
            _keep_goal(cfg, overrides)
            act(cfg, started=BEGAN, overrides=overrides)
        except Stopped as stop:
            line = command_line("switch_lm.train", *_overrides_of(cfg, stop.run), f"resume={stop.run}")
            sys.exit(_say(f"{stop}\nto continue: {line}", stop.code))
        except Exception as error:  # raised again outside: Hydra would print a line of its own
            failures.append(_in_words(error))
        return None

    try:
        arguments = cli.prepared(given)
        cli.check(arguments)
        with _arguments(arguments):
            _compose_and_run(run_job, planned=planned)
        if failures:
            raise failures[0]
    except (ConfigError, TextError) as error:
        sys.exit(_say(refusal(error), 2))
    except (CorpusError, TrainingError) as error:
        sys.exit(_say(str(error), 1))
    except Stopped as stop:  # in a sweep, which has printed how to continue
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(_say("Stopped.", 130))


def _keep_goal(cfg: DictConfig, overrides: Mapping[str, Any]) -> None:
    """A run that is resumed without trainer.max_steps goes on to its own, which may be that of a later leg."""
    if GOAL not in overrides and (goal := own_goal(str(cfg.outputs), cfg.resume)) is not None:
        cfg.trainer.max_steps = goal


def _overrides_of(cfg: DictConfig, run: str) -> list[str]:
    """Those of the command line that the run is resumed with; in place of a budget, the keys that it set."""
    given = as_given(HydraConfig.get().overrides.task)
    chosen: dict[str, Any] = {}
    if cfg.trainer.budget is not None:
        stored = stated(Path(expanded(str(cfg.outputs)), "runs", run))
        chosen = {key: stored[key] for key in SET_BY_BUDGET}
    left_out = ("name", "resume", "trainer.budget", *chosen)
    kept = [override for override in given if override.partition("=")[0] not in left_out]
    return kept + [f"{key}={value}" for key, value in chosen.items()]


def _in_words(error: Exception) -> Exception:
    """A TrainingError in place of an allocation that failed."""
    if not isinstance(error, MemoryError | RuntimeError):
        return error
    from switch_lm.model.devices import SMALLER, no_memory  # only now, since torch is slow to load

    return error if (problem := no_memory(error)) is None else TrainingError(f"{problem}; {SMALLER}")


@contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """Hydra reads the command line itself."""
    before = sys.argv
    sys.argv = [*before[:1], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _compose_and_run(run_job: Callable[[DictConfig], float | None], *, planned: bool) -> None:
    """ConfigError for what Hydra cannot read or compose, for which it raises many types."""
    with launchers.every_job_returned(planned=planned) as launches, late_help():
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(run_job)()
        except Exception as error:
            of_disk = isinstance(error, OSError) and not isinstance(error, HydraException)  # of which one is both
            if launches.begun and isinstance(error, OSError) and error.filename is not None:  # a record of the sweep
                problem = f"{error.filename} could not be written: {error.strerror}{remedy(error)}"
                raise TrainingError(problem) from error
            if launches.begun or of_disk:
                raise
            raise ConfigError(cli.explain(error, _plugins_of_the_run())) from error


def _plugins_of_the_run() -> Any:
    """Those that the run to be resumed used: Hydra, which cannot compose without them, does not know their names."""
    name, outputs = (cli.value_of(key, sys.argv[1:]) for key in ("resume", "outputs"))
    return plugins_of(Path(expanded(outputs or str(OUTPUTS)), "runs", name)) if name and NAME.holds(name) else None


def _say(message: str, code: int) -> int:
    if is_heard():
        print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
