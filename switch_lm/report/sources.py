"""Which run folders the paths on the command line mean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from switch_lm.config.rules import show
from switch_lm.storage.run_folder import CONFIG, JOB, RESULT, SWEEP
from switch_lm.storage.runs import OUTPUTS, RunError, find_run


class ReportError(Exception):
    """A report can not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A run folder, or a job of a sweep that has none yet: then `folder` is None, and `planned` holds its overrides."""

    name: str
    folder: Path | None
    sweep: Path | None = None
    planned: dict[str, Any] = field(default_factory=dict)


def find_sources(paths: Sequence[str | Path], outputs: Path = OUTPUTS) -> list[Source]:
    """The runs that the paths mean, each once. A path: a sweep, a folder of runs, a run, a run's name, or a glob."""
    found: dict[object, Source] = {}
    for path in paths:
        sources = list(_sources(str(path), outputs))
        if not sources:
            rule = "there is no run in it: a report is made of runs, which have a config.yaml, and jobs, a job.json"
            raise ReportError(f"{path}: {rule}; give a sweep's folder, runs or a glob, for example outputs/sweeps/NAME")
        for source in sources:
            found.setdefault(source.folder.resolve() if source.folder else (source.sweep, source.name), source)
    if not found:
        raise ReportError("no path was given; give a sweep's folder, runs or a glob, for example outputs/sweeps/NAME")
    return list(found.values())


def sweep_of(path: str | Path, outputs: Path = OUTPUTS) -> Path | None:
    """The folder of the sweep, or of runs, that the path means; None if it means something else."""
    for folder in (Path(path), outputs / "sweeps" / str(path)):
        if str(path) and folder.is_dir() and not is_run(folder):
            return folder
    return None


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, RESULT, JOB))


def read_json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or no mapping in it, as in one that was cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _sources(path: str, outputs: Path) -> Iterable[Source]:
    if path and is_run(Path(path)):
        return [_run(Path(path))]
    if (sweep := sweep_of(path, outputs)) is not None:
        return _jobs(sweep)
    if set(path) & set("*?["):
        return _matches(path, outputs)
    try:
        run = find_run(path, outputs)
    except RunError as error:
        raise ReportError(f"{error}; a report also takes a sweep's folder or a glob") from error
    return [_run(run if run.is_dir() else run.parent.parent)]


def _matches(pattern: str, outputs: Path) -> Iterator[Source]:
    anchor = Path(Path(pattern).anchor or ".")
    for base in (anchor, outputs / "sweeps", outputs / "runs"):
        inner = str(Path(pattern).relative_to(anchor)) if base == anchor else pattern.lstrip("/")
        folders = [folder for folder in sorted(base.glob(inner)) if folder.is_dir()]
        for folder in folders:
            yield from [_run(folder)] if is_run(folder) else _jobs(folder)
        if folders:
            return


def _run(folder: Path) -> Source:
    """A job of a sweep is named with it, as `sweep/job`."""
    folder = folder.resolve()
    sweep = folder.parent if (folder.parent / SWEEP).is_file() or (folder / JOB).is_file() else None
    return Source(f"{sweep.name}/{folder.name}" if sweep else folder.name, folder, sweep)


def _jobs(sweep: Path) -> Iterator[Source]:
    """The jobs that have a folder, then those that were planned and have none."""
    sweep = sweep.resolve()
    folders = [folder for folder in sorted(sweep.iterdir()) if folder.is_dir() and is_run(folder)]
    jobs = (read_json(sweep / SWEEP) or {}).get("jobs")
    planned = [job if isinstance(job, dict) else {} for job in jobs] if isinstance(jobs, list) else []
    started = {number for folder in folders if (number := _number(folder, planned)) is not None}
    yield from map(_run, folders)
    for number, job in enumerate(planned):
        if number not in started:
            yield Source(f"{sweep.name}/{_shown(job) or number}", None, sweep, job)


def _number(folder: Path, planned: Sequence[Mapping[str, Any]]) -> int | None:
    """A job's number: as recorded at its end; before, that of the planned job that the folder is named by."""
    recorded = (read_json(folder / JOB) or {}).get("job")
    if isinstance(recorded, int):
        return recorded
    return next((number for number, job in enumerate(planned) if _shown(job) == folder.name), None)


def _shown(job: Mapping[str, Any]) -> str:
    """How a sweep names the job's folder, unless that would be too long."""
    text = ",".join(f"{key.removeprefix('model.')}={show(value)}" for key, value in job.items())
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)
