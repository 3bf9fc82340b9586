"""The jobs of one sweep: where each lies, what came of it, and Hydra's callback around them."""

import math
import os
import re
import secrets
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.config.arguments import quoted
from switch_lm.config.keys import NAME, ConfigError
from switch_lm.config.limits import num_cores
from switch_lm.config.paths import expanded
from switch_lm.config.reading import literal
from switch_lm.config.rules import refusal, show
from switch_lm.config.schema import changes_result
from switch_lm.storage.files import replace_text
from switch_lm.storage.locks import Lock
from switch_lm.storage.names import as_name, numbered, short_name
from switch_lm.storage.run_folder import JOB, RESULT, SWEEP, RunFolder, Stopped, TrainingError, read_job
from switch_lm.sweep.grid import Grid, as_given, require_valid
from switch_lm.text.given import CorpusError, TextError
from switch_lm.training.parallel.outside import is_heard, part_of
from switch_lm.training.signals import StopSignals

ENDED = ("done", "failed", "stopped")  # the status of a job that is not launched again by the same start of a sweep
TRACEBACK = "traceback.txt"


class Sweep(Callback):
    """Gives a sweep the folder that the same command finds again, prints what will run, and reports at its end."""

    locks: ClassVar[ExitStack] = ExitStack()  # closed by `every_job_returned`: Hydra calls nothing after an exception
    is_planned: ClassVar[bool] = False  # set by `every_job_returned`: nothing is launched or written
    is_here: ClassVar[bool] = False  # set by `every_job_returned`; in a launcher's worker the sweep is elsewhere

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from switch_lm.sweep.table import print_plan

        try:
            folder, grid = _folder(config), Grid.of(config)
            checked = require_valid(config, grid)
            for job in checked.values():
                part_of(job, in_sweep=True)
            if self.is_planned:
                from switch_lm.sweep.forecast import end_with_times

                end_with_times(config, grid, folder, checked)
            folder.mkdir(parents=True, exist_ok=True)
            self.locks.enter_context(Lock(folder, "two commands would do each other's jobs"))
            plan = plan_of(config, grid, began=RunFolder(folder).read_json(SWEEP))
            RunFolder(folder).write_json(SWEEP, plan)
        except OSError as error:
            fix = "make the folder writable, or choose another one with outputs=FOLDER"
            _refuse(ConfigError(f"outputs={config.outputs}: {folder} cannot be written ({error.strerror}); {fix}"))
        except (ConfigError, TextError) as error:
            _refuse(error)
        with open_dict(config.hydra):  # each job's configuration is composed again from these overrides
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")
            config.hydra.sweep.dir = literal(str(folder))
            changed = {override.partition("=")[0]: override for override in grid.changed}
            task = [changed.get(one.partition("=")[0], one) for one in as_given(config.hydra.overrides.task)]
            config.hydra.overrides.task = task + [override for override in grid.changed if override not in task]
        print_plan(plan, folder=folder, notes=grid.notes)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None  # Hydra keeps them to the sweep's end: a quarter of a MiB a job

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """From files, since jobs may have been other processes. Exit code 1 if a job failed."""
        from switch_lm.sweep.table import print_end, print_left

        folder = Path(str(config.hydra.sweep.dir))
        print_end(folder)
        plan = RunFolder(folder).read_json(SWEEP) or {}
        rows = [row for row in read_jobs(folder) if row.get("start") == plan.get("start")]  # not those of another grid
        if not rows or any(row["status"] != "done" for row in rows):
            print_left(plan, rows)
            sys.exit(1)


@survive_closed_pipe()  # in a launcher's worker too
def run_job(cfg: DictConfig, train: Callable[..., dict[str, Any]]) -> float:
    """Trains one job in its folder of the sweep and records its outcome; an error ends only this job.

    Returns val_loss, which a searching sweeper minimises; infinity for a job that failed.
    """
    from switch_lm.sweep.table import heading

    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    plan, task = RunFolder(sweep).read_json(SWEEP) or {}, as_given(hydra.overrides.task)
    record = recorded(sweep, plan, hydra.job.num, task)
    record.pop("process", None)
    if record.pop("status", None) in ENDED or _of_worker.received is not None:  # before a launch was lost
        return outcome(sweep, plan, hydra.job.num, task)
    job = RunFolder(job_folder(sweep, record["overrides"]))
    skipped, started = (job.path / RESULT).is_file(), time.perf_counter()
    before = (job.read_json(JOB) or {}) if skipped else {}
    job.path.mkdir(parents=True, exist_ok=True)
    job.write_json(JOB, record | {"status": "running", "process": os.getpid()})  # what stays if it is killed
    words = heading(plan, record) if cfg.logger.progress == "auto" else None
    try:
        with _signals(job.path) as signals:
            result = train(_with_threads(cfg, hydra.launcher), folder=job.path, heading=words, signals=signals)
    except Stopped as stop:
        result, record = {}, record | {"status": "stopped", "error": str(stop)}
        if stop.code != 0:  # by a signal, which is meant for all jobs
            job.write_json(JOB, record)
            if Sweep.is_here:
                raise
            return math.inf  # a launcher would kill the others in the middle of what they save
    except Exception as error:  # whatever went wrong, the other jobs run
        fail(sweep, plan, record | {"seconds": time.perf_counter() - started}, error)
        return math.inf
    else:
        record |= {"status": "done"}
    if not skipped:
        record["seconds"] = time.perf_counter() - started
    elif "seconds" in before:  # not if it was killed between its result and this record
        record["seconds"] = before["seconds"]
    job.write_json(JOB, record)
    show_row(sweep, plan, record, skipped=skipped)
    if Sweep.is_here and signals.received is not None and hydra.job.num + 1 < plan["num_jobs"]:
        raise signals.stopped("this job was done")  # it came in the last validation
    return float(result.get("val_loss", math.inf))


_of_worker = StopSignals(Path(), patient=True)


@contextmanager
def _signals(job: Path) -> Iterator[StopSignals]:
    """What stops a job. A launcher's worker has one for all of its jobs: what comes between two must not kill it."""
    if Sweep.is_here:
        with StopSignals(job) as signals:
            yield signals
        return
    _of_worker.run, _of_worker.nothing_to_save = job, True
    _of_worker.__enter__()  # to its end
    try:
        yield _of_worker
    finally:
        _of_worker.nothing_to_save = False


def recorded(sweep: Path, plan: Mapping[str, Any], number: int, task: Sequence[str]) -> dict[str, Any]:
    """What this start of the sweep recorded of a job with these overrides; without `status` if it has not begun."""
    overrides = as_mapping(list(task))
    varied = {key: overrides[key] for key in plan["varied"]}
    stored = RunFolder(job_folder(sweep, varied)).read_json(JOB)
    if stored is not None and stored.get("start") == plan["start"]:
        return stored
    return {"job": number, "overrides": varied, "start": plan["start"]}


def outcome(sweep: Path, plan: Mapping[str, Any], number: int, task: Sequence[str]) -> float:
    """The val_loss of a job that has ended; infinity if it has none."""
    record = recorded(sweep, plan, number, task)
    result = RunFolder(job_folder(sweep, record["overrides"])).read_json(RESULT) or {}
    return float(result.get("val_loss", math.inf))


def fail(sweep: Path, plan: Mapping[str, Any], record: Mapping[str, Any], error: Exception) -> None:
    """Records a job as failed and prints its row; the traceback of what nobody expected goes to the job's folder."""
    job = RunFolder(job_folder(sweep, record["overrides"]))
    job.path.mkdir(parents=True, exist_ok=True)
    reason = str(error) or type(error).__name__
    if not isinstance(error, (ConfigError, CorpusError, TrainingError)):
        text = "".join(traceback.format_exception(error))
        replace_text(job.path / TRACEBACK, text)
        reason = f"{_reason(error)} (traceback: {job.path / TRACEBACK})"
    record = {key: value for key, value in record.items() if key != "process"} | {"status": "failed", "error": reason}
    job.write_json(JOB, record)
    show_row(sweep, plan, record)


def show_row(sweep: Path, plan: Mapping[str, Any], record: Mapping[str, Any], *, skipped: bool = False) -> None:
    """Prints the row of a job that has ended."""
    from switch_lm.sweep.table import print_row

    result = RunFolder(job_folder(sweep, record["overrides"])).read_json(RESULT) or {}
    print_row(plan, record, result, read_jobs(sweep), skipped=skipped)


def _reason(error: Exception) -> str:
    """Type and message in a line: the worker's own, where a launcher wrapped its traceback into another error."""
    remote = re.search(r"Traceback \(most recent call last\):\n(?:(?: .*)?\n)*(\S.*)", f"{error.__cause__}\n{error}")
    return remote[1] if remote else f"{type(error).__name__}: {error}".splitlines()[0]


def job_folder(sweep: Path, overrides: Mapping[str, Any]) -> Path:
    """Of a job with these overrides. Of two with one name the second has a number.

    A sweep that was started with older names keeps them.
    """
    before = sweep / (as_name([f"{key}={show(value)}" for key, value in overrides.items()]) or "job")
    if (before / JOB).is_file():
        return before
    folders = numbered(sweep / (short_name(overrides) or "job"))
    return next(folder for folder in folders if (read_job(folder) or {}).get("overrides", overrides) == overrides)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """What each job of a sweep recorded, in order of number."""
    records = [read_job(path.parent) or {} for path in folder.glob(f"*/{JOB}")]
    return sorted(records, key=lambda record: int(record["job"]))


def as_mapping(overrides: list[str]) -> dict[str, Any]:
    """Override strings as key -> value."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.get_key_element().lstrip("+~"): _plain(override.value()) for override in parsed}


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)


def plan_of(config: DictConfig, grid: Grid, *, began: dict[str, Any] | None) -> dict[str, Any]:
    """The content of sweep.json."""
    from switch_lm.storage.provenance import commit

    trials = config.hydra.sweeper.get("n_trials")
    jobs = None if trials else grid.jobs()  # a search may choose from more than a list can hold
    given = [*as_given(config.hydra.overrides.task), *as_given(config.hydra.overrides.hydra)]
    words = ["-m" if override == "hydra.mode=MULTIRUN" else override for override in given]
    return {
        "command": shlex.join(["python", "-m", "switch_lm.train", *words]),
        "start": secrets.token_hex(4),  # distinguishes the records of this start from those of an earlier one
        "started": began["started"] if began else datetime.now().isoformat(timespec="seconds"),
        "commit": commit(),
        "varied": list(grid.varied),
        "jobs": jobs,
        "num_jobs": int(trials) if trials else len(jobs or []),
        "side_by_side": side_by_side(config.hydra.launcher),
    }


def _folder(config: DictConfig) -> Path:
    """By the sweep's name or else by its overrides, so that the same command continues it."""
    if any(override.startswith("hydra.sweep.dir=") for override in as_given(config.hydra.overrides.hydra)):
        return Path(expanded(str(config.hydra.sweep.dir)))
    name = config.get("name")
    if name is None:
        task = OverridesParser.create().parse_overrides(as_given(config.hydra.overrides.task))
        unnamed = {"experiment", "logger"}
        named = [o for o in task if (key := o.get_key_element()) not in unnamed and changes_result(key)]
        parts = sorted(str(o.input_line) for o in named)
        name = as_name([config.hydra.runtime.choices.get("experiment") or "", *parts]) or "sweep"
    elif not NAME.holds(str(name)):
        raise ConfigError(f"name={name}: {NAME.text}; for example name=my_sweep")
    return Path(expanded(str(config.outputs))) / "sweeps" / str(name)


def _refuse(error: ConfigError | TextError) -> NoReturn:
    """By itself: Hydra makes a warning of an exception in a callback."""
    if is_heard():
        print(refusal(error) if isinstance(error, ConfigError) else error, file=sys.stderr)
    sys.exit(2)


def side_by_side(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs at once: joblib's n_jobs (-1: as many as there are cores), else taken as 1."""
    number = int(launcher.get("n_jobs") or 1)
    return number if number > 0 else max(1, num_cores() + 1 + number)


def _with_threads(cfg: DictConfig, launcher: Mapping[str, Any]) -> DictConfig:
    """The job with its share of the cores, unless `trainer.threads` is set: jobs side by side must not fight."""
    share = threads_of_job(launcher)
    if share is None or cfg.trainer.threads is not None:
        return cfg
    return OmegaConf.merge(cfg, {"trainer": {"threads": share}})  # type: ignore[return-value]


def threads_of_job(launcher: Mapping[str, Any]) -> int | None:
    """Each job's share of the cores; None where one job runs at a time."""
    asked, jobs = launcher.get("cpus_per_task"), side_by_side(launcher)  # submitit's, joblib's
    return int(asked) if asked else max(1, num_cores() // jobs) if jobs > 1 else None
