"""Which runs the paths on the command line mean, and what is known of each: configuration, result, curves, faults."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from statistics import fmean
from typing import Any

from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import flatten, show
from switch_lm.storage import metrics
from switch_lm.storage.files import read_json
from switch_lm.storage.locks import in_use
from switch_lm.storage.run_folder import CONFIG, JOB, RESULT, SWEEP, read_config, read_job
from switch_lm.storage.runs import OUTPUTS, RunError, find_run

FIX = "give a sweep's folder, runs or a glob, for example outputs/sweeps/NAME"
DONE, FAILED, UNFINISHED, NOT_RUN = "done", "failed", "unfinished", "not run"
LONGEST_REASON, LONGEST_FAULT = 300, 200
TAGS = ("val/loss", "perf/training_seconds", "train/loss")
DROPPED_SHARE = re.compile(r"moe/layer_(\d+)/dropped_share")
TAIL, TAIL_DROPPED = 1 / 5, "dropped_tail"  # of the planned steps; the share dropped there


class ReportError(Exception):
    """A report cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Point:
    """One validation."""

    step: int
    loss: float
    seconds: float | None = None  # of training steps until then


@dataclass(frozen=True)
class Crossing:
    """When a curve first reached a threshold; `at_most`: its first point was already there."""

    steps: float
    seconds: float | None
    at_most: bool = False


@dataclass(frozen=True)
class Curves:
    """Validations in order of steps, the training loss by step, and what could not be read."""

    validations: tuple[Point, ...] = ()
    training: tuple[tuple[int, float], ...] = ()
    last_step: int | None = None  # of anything written
    dropped: tuple[tuple[int, dict[int, float]], ...] = ()  # the share of choices dropped in training by step and layer
    fault: str = ""

    def tail_dropped(self, max_steps: object) -> float | None:
        """The mean share dropped over the last fifth of the planned steps; None if nothing was written there."""
        last = max_steps if isinstance(max_steps, int) else math.inf
        shares = [fmean(layers.values()) for step, layers in self.dropped if step > (1 - TAIL) * last]
        return fmean(shares) if shares else None


@dataclass(frozen=True)
class Record:
    """One run. `config` has every key, `result` the flat figures; both are empty where a run has none."""

    name: str
    status: str
    folder: Path | None = None
    sweep: Path | None = None
    reason: str = ""  # why there is no result
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    faults: tuple[str, ...] = ()  # what could not be read of it
    searched: bool = False  # by a sweep that chose its trials by their results
    job: int | None = None  # its number in its sweep
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what varies in its sweep

    @property
    def seed(self) -> int | None:
        """None if neither the configuration nor the result says it."""
        seed = self.config.get("seed")
        seed = self.result.get("seed") if seed is None else seed
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    def figure(self, key: str) -> float | None:
        """A finite number of the result, such as `val_loss` or `computation.training`; None if it is missing."""
        return finite(self.result.get(key))


def finite(value: object) -> float | None:
    """The value if it is a finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def find_sources(paths: Sequence[str | Path], outputs: Path = OUTPUTS) -> list[Record]:
    """The runs that the paths mean, each once and not read yet.

    A path: a sweep, a folder of runs, a run, a run's name, or a glob.
    """
    unique: dict[object, Record] = {}
    for path in paths:
        folders = _folders(os.path.expanduser(path), outputs.expanduser())  # noqa: PTH111  of a user who is not here, too
        records = [record for folder in folders for record in ([_run(folder)] if is_run(folder) else _jobs(folder))]
        if not records:
            rule = "it has no run: a report needs runs, which have a config.yaml, or jobs, which have a job.json"
            raise ReportError(f"{path}: {rule}; {FIX}")
        for record in records:
            unique.setdefault(record.folder or (record.sweep, record.name), record)
    if not unique:
        raise ReportError(f"no path was given; {FIX}")
    return list(unique.values())


def folder_of(path: str | Path, outputs: Path = OUTPUTS) -> Path | None:
    """The folder that the path names, here or among the sweeps."""
    folders = (Path(path), outputs / "sweeps" / path) if str(path) else ()
    return next((folder for folder in folders if folder.is_dir()), None)


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, RESULT, JOB))


def _folders(path: str, outputs: Path) -> list[Path]:
    """The folders of runs and sweeps that a path means; a glob's are here, or else among the sweeps or the runs."""
    if (folder := folder_of(path, outputs)) is not None:
        return [folder]
    if set(path) & set("*?["):
        bases = (Path(), outputs / "sweeps", outputs / "runs")  # Path.glob takes no absolute pattern
        matches = [sorted(base / match for match in glob(path, root_dir=base, recursive=True)) for base in bases]  # noqa: PTH207
        return next(filter(None, ([match for match in some if match.is_dir()] for some in matches)), [])
    try:
        run = find_run(path, outputs)
    except RunError as error:
        raise ReportError(f"{error}; a report also takes a sweep's folder or a glob") from error
    return [run if run.is_dir() else run.parent.parent]


def _run(folder: Path) -> Record:
    """A job of a sweep is named with it, as `sweep/job`."""
    folder = folder.resolve()
    sweep = folder.parent if (folder.parent / SWEEP).is_file() or (folder / JOB).is_file() else None
    return Record(f"{sweep.name}/{folder.name}" if sweep else folder.name, UNFINISHED, folder, sweep)


def _jobs(sweep: Path) -> Iterator[Record]:
    """The jobs that have a folder, then those that were planned and have none."""
    sweep = sweep.resolve()
    folders = [folder for folder in sorted(sweep.iterdir()) if folder.is_dir() and is_run(folder)]
    recorded = {folder.name: (read_json(folder / JOB) or {}).get("job") for folder in folders}
    started = {number if isinstance(number, int) else name for name, number in recorded.items()}
    yield from map(_run, folders)
    planned = (read_json(sweep / SWEEP) or {}).get("jobs")
    for number, job in enumerate(planned if isinstance(planned, list) else []):
        overrides = job if isinstance(job, dict) else {}
        text = ",".join(f"{key.removeprefix('model.')}={show(value)}" for key, value in overrides.items())
        name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)  # the job's folder, unless that would be too long
        if not {number, name} & started:
            words = [f"{key}={show(value)}" for key, value in overrides.items()]
            reason = f"planned, not started: {' '.join(words)}" if words else "planned, not started"
            record = Record(f"{sweep.name}/{name or number}", NOT_RUN, None, sweep, reason, overrides)
            yield replace(record, job=number, overrides=overrides)


def read_records(sources: Iterable[Record]) -> tuple[Record, ...]:
    records = [_read(record, record.folder) if record.folder else record for record in sources]
    plans = {sweep: read_json(sweep / SWEEP) for sweep in {record.sweep for record in records} if sweep}
    searches = {sweep for sweep, plan in plans.items() if plan and plan.get("jobs", []) is None}
    return tuple(replace(record, searched=record.sweep in searches) for record in records)


def _read(record: Record, folder: Path) -> Record:
    config, fault = _config(folder)
    result, job = read_json(folder / RESULT), _job(folder)
    curves = read_curves(folder) if config else Curves()
    status = DONE if result else FAILED if job.get("status") == "failed" else UNFINISHED
    last, of = curves.last_step, config.get("trainer.max_steps", "?")
    state = "; it is running" if not result and in_use(folder) else "; " * ("error" in job) + job.get("error", "")
    reasons = {
        DONE: "",
        FAILED: _one_line(job.get("error") or "no reason was recorded", LONGEST_REASON),
        UNFINISHED: (f"no step of {of} recorded" if last is None else f"step {last} of {of} is the last one recorded")
        + state,
    }
    flat = flatten(result or {})
    if result and (dropped := curves.tail_dropped(config.get("trainer.max_steps"))) is not None:
        flat[TAIL_DROPPED] = dropped
    record = replace(record, status=status, reason=reasons[status], config=config, result=flat, curves=curves)
    number, overrides = job.get("job"), job.get("overrides")
    record = replace(record, job=number if isinstance(number, int) else None)
    record = replace(record, overrides=overrides if isinstance(overrides, dict) else {})
    faults = [fault]
    if result is None and (folder / RESULT).exists():
        faults.append(f"{RESULT} cannot be read: it is cut off, or is not JSON")
    if result:
        end, steps = [point.step for point in curves.validations[-1:]], flat.get("steps")
        cut_off = end and isinstance(steps, int) and end[0] < steps
        ending = f"its {metrics.METRICS} ends at the validation of step {end[0]}, of {steps}" if cut_off else ""
        faults.append(curves.fault or ending)
    if result and config and record.seed is None:
        faults.append("its seed is not known: it is neither averaged nor compared with other runs")
    return replace(record, faults=tuple(filter(None, faults)))


def _job(folder: Path) -> dict[str, Any]:
    with suppress(ConfigError):  # of a damaged file, the rest of the run is reported
        return read_job(folder) or {}
    return {}


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    """Every key of the run; {} and what is wrong, if its file cannot be read."""
    if not (folder / CONFIG).is_file():
        return {}, "" if (folder / JOB).is_file() else f"it has no {CONFIG}"
    try:
        return read_config(folder), ""
    except ConfigError as error:
        return {}, str(error)


def _one_line(error: object, longest: int) -> str:
    return " ".join(str(error).split())[:longest]


def read_curves(folder: Path) -> Curves:
    """The run's curves from metrics.jsonl. Never an error: one broken file must not end a report of many runs."""
    try:
        rows = metrics.read(folder)
    except FileNotFoundError:
        return Curves(fault=f"it has no {metrics.METRICS}: no learning curve")
    except (ConfigError, OSError) as error:
        return Curves(fault=f"{_one_line(error, LONGEST_FAULT)}: no learning curve")
    losses, seconds, training = (metrics.series(rows, tag) for tag in TAGS)
    dropped = {row["step"]: shares for row in rows if (shares := _dropped_shares(row))}
    points = tuple(Point(step, loss, finite(seconds.get(step))) for step, loss in _finite(losses))
    fault = "" if losses else f"there is no validation in its {metrics.METRICS}: no learning curve"
    if len(points) < len(losses):
        fault = "its learning curve holds NaN or infinity, left out"
    last = max({*losses, *seconds, *training}, default=None)
    return Curves(points, _finite(training), last, tuple(sorted(dropped.items())), fault)


def _dropped_shares(row: metrics.Row) -> dict[int, float]:
    tags = {match: tag for tag in row if (match := DROPPED_SHARE.fullmatch(tag))}
    return {int(m[1]): value for m, tag in tags.items() if (value := finite(row[tag])) is not None}


def _finite(points: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((step, value) for step, value in sorted(points.items()) if math.isfinite(value))


def crossing(curve: Sequence[Point], threshold: float) -> Crossing | None:
    """The first time the loss is at the threshold or below, on the straight line between two validations."""
    i = next((i for i, point in enumerate(curve) if point.loss <= threshold), None)
    if i is None:
        return None
    point, before = curve[i], curve[i - 1]
    if i == 0:
        return Crossing(point.step, point.seconds, at_most=True)
    share = (before.loss - threshold) / (before.loss - point.loss)
    steps = before.step + share * (point.step - before.step)
    if before.seconds is None or point.seconds is None:
        return Crossing(steps, None)
    return Crossing(steps, before.seconds + share * (point.seconds - before.seconds))
