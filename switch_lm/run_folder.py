"""Which folder a run writes to: a new one, or that of a run it continues."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from switch_lm.config import ConfigError, flatten, show
from switch_lm.settings import Config

CONFIG, RESULT, HARDWARE = "config.yaml", "result.json", "hardware.json"
JOB, SWEEP = "job.json", "sweep.json"  # what came of a sweep's job, and what a sweep is to run
# Where a run lies and how it is shown changes nothing in what it computes.
NOT_COMPARED = (
    "name", "resume", "outputs", "data.dir", "data.num_workers", "trainer.threads", "trainer.max_time",
    "logger.progress",
)  # fmt: skip


class TrainingError(Exception):
    """A run failed before its end; the message says why and what is left."""


class Stopped(BaseException):
    """The run of this name was asked to end before its last step. `code`: the process's exit code.

    Nothing that catches errors must take it for one.
    """

    def __init__(self, message: str, *, run: str, code: int) -> None:
        super().__init__(message)
        self.run, self.code = run, code


@dataclass(frozen=True)
class RunFolder:
    """A run's place, and the checkpoint it goes on from, if any."""

    path: Path
    resumes_from: Path | None = None
    sweep: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def create(self, config: Config) -> None:
        """Makes the folder and stores the configuration; an OSError becomes a message with the fix."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text(self.path / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))
        except OSError as error:
            raise ConfigError(
                f"outputs={config.outputs}: {self.path} can not be written ({error.strerror}); "
                "make the folder writable, or choose another one with outputs=FOLDER"
            ) from error

    def store_hardware(self, hardware: dict[str, Any]) -> None:
        """Stores how the run computes, for a resume and for the later jobs of its sweep."""
        self.write_json(HARDWARE, hardware)
        if self.sweep is not None:  # which took it from there, if it is not the first
            write_text(self.sweep / HARDWARE, json.dumps(hardware, indent=2) + "\n")

    def stored_hardware(self) -> dict[str, Any] | None:
        """What the run, or an earlier job of its sweep, was found to compute on."""
        stored = self.read_json(HARDWARE)
        return stored if stored is not None or self.sweep is None else RunFolder(self.sweep).read_json(HARDWARE)

    def read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces `path` as a whole, never in part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).chmod(0o644)  # mkstemp's files are the owner's alone
    os.replace(temporary, path)


def choose(config: Config) -> RunFolder:
    """The folder for this run; ConfigError if it is used already, or if what `resume` names can not go on.

    Nothing is created yet.
    """
    runs = Path(config.outputs) / "runs"
    if config.resume == "auto":
        return _newest_unfinished(runs, config) or RunFolder(_free(runs, config.name))
    if config.resume is not None:
        return _named(runs, config)
    return RunFolder(_free(runs, config.name))


def of_job(folder: Path, config: Config) -> RunFolder:
    """A sweep job's folder, which goes on from its last checkpoint; ConfigError if it holds another configuration."""
    if (folder / CONFIG).is_file() and (different := _differences(folder, config)):
        raise ConfigError(
            f"{folder} holds a run of another configuration ({_told(different)}); give this sweep a name of its own: "
            "name=NAME"
        )
    return RunFolder(folder, _last_checkpoint(folder), sweep=folder.parent)


def _free(runs: Path, name: str | None) -> Path:
    if name is None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        path = runs / stamp
        return path if not path.exists() else runs / f"{stamp}-{os.getpid()}"
    path = runs / name
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"name={name}: {path} holds a run already; choose another name, or go on with resume={name}")
    return path


def _newest_unfinished(runs: Path, config: Config) -> RunFolder | None:
    """The run of an equal configuration that was stopped last and has no result yet."""
    candidates = [
        path
        for path in runs.glob("*" if config.name is None else config.name)
        if (path / CONFIG).is_file() and not (path / RESULT).is_file() and not _differences(path, config)
    ]
    if not candidates:
        return None
    newest = max(candidates, key=lambda path: (path / CONFIG).stat().st_mtime_ns)
    return RunFolder(newest, _last_checkpoint(newest))


def _named(runs: Path, config: Config) -> RunFolder:
    path = runs / str(config.resume)
    if not (path / CONFIG).is_file():
        there = ", ".join(sorted(p.name for p in runs.glob("*") if (p / CONFIG).is_file())[-5:]) or "none"
        raise ConfigError(f"resume={config.resume}: {path} is not a run; the newest there are: {there}")
    if (path / RESULT).is_file():
        raise ConfigError(f"resume={config.resume}: {path} is finished; start a new run with another name")
    if different := _differences(path, config):
        raise ConfigError(f"resume={config.resume}: another configuration than that of the run: {_told(different)}")
    return RunFolder(path, _last_checkpoint(path))


def _last_checkpoint(path: Path) -> Path | None:
    """None where a run was stopped before its first checkpoint: it begins anew in its own folder."""
    last = path / "checkpoints" / "last.ckpt"
    return last if last.is_file() else None


def _differences(path: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    then = flatten(dict(OmegaConf.to_container(OmegaConf.load(path / CONFIG))))  # type: ignore[arg-type]
    now = flatten(asdict(config))
    keys = sorted((then.keys() | now.keys()) - set(NOT_COMPARED))
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def _told(differences: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {show(then)}, now {show(now)}" for key, (then, now) in differences.items())
