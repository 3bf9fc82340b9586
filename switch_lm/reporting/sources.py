"""Which runs the paths on the command line mean."""

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

FIX = "give a sweep's folder, runs or a glob, for example outputs/sweeps/NAME"


class ReportError(Exception):
    """A report cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A run folder, or a job of a sweep that has none yet: then `folder` is None, and `planned` holds its overrides."""

    name: str
    folder: Path | None
    sweep: Path | None = None
    planned: dict[str, Any] = field(default_factory=dict)


def find_sources(paths: Sequence[str | Path], outputs: Path = OUTPUTS) -> list[Source]:
    """The runs that the paths mean, each once. A path: a sweep, a folder of runs, a run, a run's name, or a glob."""
    unique: dict[object, Source] = {}
    for path in paths:
        sources = list(_sources(str(path), outputs))
        if not sources:
            rule = "it has no run: a report needs runs, which have a config.yaml, or jobs, which have a job.json"
            raise ReportError(f"{path}: {rule}; {FIX}")
        for source in sources:
            unique.setdefault(source.folder.resolve() if source.folder else (source.sweep, source.name), source)
    if not unique:
        raise ReportError(f"no path was given; {FIX}")
    return list(unique.values())


def sweep_of(path: str | Path, outputs: Path = OUTPUTS) -> Path | None:
    """The folder of the sweep, or of runs, that the path means; None if it means something else."""
    folders = (Path(path), outputs / "sweeps" / str(path)) if str(path) else ()
    return next((folder for folder in folders if folder.is_dir() and not is_run(folder)), None)


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, RESULT, JOB))


def read_json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or if it holds no mapping, such as one that was cut off."""
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
    """What the glob finds here, or else among the sweeps, or else among the runs."""
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
    recorded = {folder.name: (read_json(folder / JOB) or {}).get("job") for folder in folders}
    started = {number if isinstance(number, int) else name for name, number in recorded.items()}
    yield from map(_run, folders)
    for number, job in enumerate(planned):
        if not {number, _folder_name(job)} & started:
            yield Source(f"{sweep.name}/{_folder_name(job) or number}", None, sweep, job)


def _folder_name(job: Mapping[str, Any]) -> str:
    """How a sweep names the job's folder, unless that would be too long."""
    text = ",".join(f"{key.removeprefix('model.')}={show(value)}" for key, value in job.items())
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", text)
