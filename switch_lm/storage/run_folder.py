"""Which folder a run writes to: a new one, or that of a run it continues."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import OmegaConf

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.plugins import load_plugins, not_loaded
from switch_lm.config.reading import literals
from switch_lm.config.rules import flatten, show
from switch_lm.config.schema import Config, changes_result, keys_of_choice
from switch_lm.storage.files import remove_parts, replace_text
from switch_lm.storage.runs import CHECKPOINTS, LAST, damage, newest_whole

CONFIG, RESULT, HARDWARE = "config.yaml", "result.json", "hardware.json"
LOCK_SECONDS = 10.0  # to wait for it: a killed run may take some seconds to free its memory and end
JOB, SWEEP = "job.json", "sweep.json"  # what came of a sweep's job, and what a sweep is to run
FORMAT = 3  # of config.yaml; a run of format 1 has none written in it


class TrainingError(Exception):
    """A run failed before its end; the message says why and what is left."""


class Stopped(BaseException):
    """The run of this name was asked to end before its last step. `code`: the process's exit code.

    Nothing that catches errors must take it for one.
    """

    def __init__(self, message: str, *, run: str, code: int) -> None:
        super().__init__(message)
        self.run, self.code = run, code

    def __reduce__(self) -> tuple[Any, ...]:  # a launcher's worker sends it to the process that started it
        return partial(Stopped, run=self.run, code=self.code), self.args


@dataclass(frozen=True)
class RunFolder:
    """A run's place, and the checkpoint it continues from, if any."""

    path: Path
    resumes_from: Path | None = None
    sweep: Path | None = None
    seen: int | None = None  # when its configuration was written, as it was chosen; None: there was none

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def damaged(self) -> str | None:
        """Why the run does not continue from its last checkpoint; None: it does, or it is new."""
        last = self.checkpoints / LAST
        return None if self.resumes_from in (None, last) else f"{last}: {damage(last)}"

    def create(self, config: Config, hardware: dict[str, Any]) -> Lock:
        """Makes the folder, this process's own until the lock is closed, and stores what is computed and on what.

        ConfigError with the fix if it can't be written, or if another process trains there.
        """
        with ExitStack() as undo:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                lock = undo.enter_context(
                    Lock(self.path, "two processes in one folder would overwrite each other's files")
                )
                if _written_at(self.path) != self.seen:
                    again = "start the command again"
                    raise ConfigError(f"{self.path}: another process has trained here meanwhile; {again}")
                for folder in (self.path, self.checkpoints):
                    remove_parts(folder)
                replace_text(self.path / CONFIG, as_yaml(config))
                self.store_hardware(hardware)
            except OSError as error:
                raise ConfigError(
                    f"outputs={config.outputs}: {self.path} cannot be written ({error.strerror}); "
                    "make the folder writable, or choose another one with outputs=FOLDER"
                ) from error
            undo.pop_all()  # it stays locked
            return lock

    def store_hardware(self, hardware: dict[str, Any]) -> None:
        """Stores how the run computes, for a resume and for the later jobs of its sweep."""
        self.write_json(HARDWARE, hardware)
        if self.sweep is not None:  # which took it from there, if it is not the first
            replace_text(self.sweep / HARDWARE, json.dumps(hardware, indent=2) + "\n")

    def stored_hardware(self) -> dict[str, Any] | None:
        """What the run, or an earlier job of its sweep, was found to compute on."""
        stored = self.read_json(HARDWARE)
        return stored if stored is not None or self.sweep is None else RunFolder(self.sweep).read_json(HARDWARE)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of one of the run's files; None if it is not there, ConfigError if it is damaged."""
        path = self.path / name
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); remove it, and start again") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        replace_text(self.path / name, json.dumps(content, indent=2) + "\n")


class Lock:
    """Keeps other processes from working in a folder, in its block or until the process ends, however it ends.

    ConfigError, with the `rule` that this holds, if another process has it.
    """

    def __init__(self, folder: Path, rule: str) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            self._take(folder, rule)
        except BaseException:  # Ctrl-C while it waits, too
            self.close()
            raise

    def _take(self, folder: Path, rule: str) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{folder}: another process trains there at the moment; {rule}; wait for its end, or choose "
                        "another name"
                    ) from error
            time.sleep(0.2)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def choose(config: Config) -> RunFolder:
    """The folder for this run; ConfigError if it is used already, or if what `resume` names cannot be resumed.

    Nothing is created yet.
    """
    runs = Path(config.outputs) / "runs"
    if config.resume == "auto":
        return _newest_unfinished(runs, config) or RunFolder(_free(runs, config.name))
    return RunFolder(_free(runs, config.name)) if config.resume is None else _named(runs, config)


def of_job(folder: Path, config: Config) -> RunFolder:
    """A sweep job's folder, which continues from its last checkpoint; ConfigError if it holds another configuration."""
    if (folder / CONFIG).is_file() and (different := _differences(folder, config)):
        raise ConfigError(
            f"{folder} holds a run of another configuration ({_show_differences(different)}); give this sweep a name "
            "of its own: name=NAME"
        )
    return _continued(folder, sweep=folder.parent)


def _free(runs: Path, name: str | None) -> Path:
    if name is None:
        return runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")
    path = runs / name
    if path.exists() and any(path.iterdir()):
        raise ConfigError(
            f"name={name}: {path} holds a run already; choose another name, or continue it with resume={name}"
        )
    return path


def _newest_unfinished(runs: Path, config: Config) -> RunFolder | None:
    """The run of an equal configuration that was stopped last and has no result yet."""
    candidates = [
        path
        for path in runs.glob("*" if config.name is None else config.name)
        if (path / CONFIG).is_file() and not (path / RESULT).is_file() and _is_like(path, config)
    ]
    if not candidates:
        return None
    newest = max(candidates, key=lambda path: (path / CONFIG).stat().st_mtime_ns)
    return _continued(newest)


def _named(runs: Path, config: Config) -> RunFolder:
    path = runs / str(config.resume)
    if not (path / CONFIG).is_file():
        there = ", ".join(sorted(p.name for p in runs.glob("*") if (p / CONFIG).is_file())[-5:]) or "none"
        raise ConfigError(f"resume={config.resume}: {path} is not a run; the newest there are: {there}")
    if (path / RESULT).is_file():
        raise ConfigError(f"resume={config.resume}: {path} is finished; start a new run with another name")
    _require_families(path)
    if different := _differences(path, config):
        raise ConfigError(
            f"resume={config.resume}: another configuration than that of the run: {_show_differences(different)}"
        )
    return _continued(path)


def _continued(path: Path, sweep: Path | None = None) -> RunFolder:
    """The run, from its newest good checkpoint; one stopped before its first starts again in its own folder."""
    folder = path / CHECKPOINTS
    good = newest_whole(folder)
    if good is None and (there := sorted(folder.glob("*.ckpt"))):
        reasons = "; ".join(f"{checkpoint.name}: {damage(checkpoint)}" for checkpoint in there)
        raise ConfigError(
            f"{path}: no checkpoint of this run can be read ({reasons}); start a new run with another name, or remove "
            f"{folder} to begin this one again"
        )
    return RunFolder(path, good, sweep, _written_at(path))


def _written_at(path: Path) -> int | None:
    """When the configuration was stored, which each start does."""
    return (path / CONFIG).stat().st_mtime_ns if (path / CONFIG).is_file() else None


def _is_like(path: Path, config: Config) -> bool:
    """Of a run with a damaged configuration nobody can tell; asked for by its name, that is an error."""
    try:
        return not _differences(path, config)
    except ConfigError:
        return False


def _differences(path: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    then, now = read_config(path), flatten(asdict(config))
    compared = filter(changes_result, sorted(then))
    return {key: (then[key], now.get(key)) for key in compared if then[key] != now.get(key)}


def as_yaml(config: Config) -> str:
    """The content of config.yaml. The plugins stand there as text: no command imports what a file names."""
    plugins = f"plugins: [{', '.join(names)}]\n" if (names := load_plugins()) else ""
    return f"format: {FORMAT}\n{plugins}" + OmegaConf.to_yaml(OmegaConf.create(literals(asdict(config))))


def read_config(path: Path) -> dict[str, Any]:
    """Every key of a run by its dotted name, one that its file does not state at what that implies.

    ConfigError if the file is damaged, or of another format.
    """
    stored = _stored(path)
    stored.pop("plugins", None)
    names = {group: str(stored.get(f"{group}.name")) for group in FAMILIES}
    return {key.name: key.implied for key in keys_of_choice(names).values()} | stored


def plugins_of(path: Path) -> Any:
    """The plugins that a run's file names, as it states them; None if there is no such run."""
    return _stored(path).get("plugins") if (path / CONFIG).is_file() else None


def _require_families(path: Path) -> None:
    """PluginError, with what to set, if the run's router or optimizer comes from a plugin that is not loaded."""
    stored = _stored(path)
    for group, families in FAMILIES.items():
        name = stored.get(f"{group}.name")
        if name is not None and str(name) not in families:
            raise not_loaded(str(path), group, name, stored.get("plugins"))


def _stored(path: Path) -> dict[str, Any]:
    """What a run's file states, by dotted name."""
    file = path / CONFIG
    try:
        stored = flatten(dict(OmegaConf.to_container(OmegaConf.load(file), resolve=True)))  # type: ignore[arg-type]
    except Exception as error:  # of yaml's scanner, OmegaConf's, or of dict
        raise ConfigError(f"{file} is damaged ({' '.join(str(error).split())[:100]}); move {path} away") from error
    if (number := stored.pop("format", 1)) != FORMAT:
        fix = "train it again, or use the version of switch_lm that wrote it"
        raise ConfigError(f"{file} has format {number}, and this version reads format {FORMAT}; {fix}")
    return stored


def _show_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {show(then)}, now {show(now)}" for key, (then, now) in differences.items())
