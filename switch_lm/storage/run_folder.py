"""A run's folder: what is stored in it, who may write there, and how its configuration is read."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.plugins import load_plugins
from switch_lm.config.reading import literals
from switch_lm.config.rules import flatten
from switch_lm.config.schema import KEYS, Config, keys_of_choice
from switch_lm.storage.files import PART, as_json, remove_parts, replace_text
from switch_lm.storage.locks import LEASE, Lock, TakenError, in_use
from switch_lm.storage.metrics import METRICS
from switch_lm.storage.runs import CHECKPOINTS, LAST, START, damage, list_runs, start_number

CONFIG, RESULT, HARDWARE = "config.yaml", "result.json", "hardware.json"
RESULT_OF_LEG = "result_{:06d}.json"  # by its last step: of a run that was trained longer since
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


State = tuple[int, tuple[tuple[str, int, int], ...], bool]  # start, files of checkpoints, whether it is finished


@dataclass(frozen=True)
class RunFolder:
    """A run's place, and the checkpoint it continues from, if any."""

    path: Path
    resumes_from: Path | None = None
    sweep: Path | None = None
    seen: State | None = None  # its state when it was chosen; None: not looked at
    note: str | None = None  # what `resume` decided, and why
    legs: tuple[str, ...] = ()  # `optim.legs` of what is trained here
    begins_leg: bool = False  # whether the last of them begins now
    called: str | None = None  # a name that nobody chose, to which a number may be added

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def state(self) -> State:
        """Changes whenever a process starts in the folder, saves a checkpoint or writes its result."""
        files = [path for path in self.checkpoints.glob("*.ckpt") if path.is_file()]
        saved = sorted((path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in files)
        return start_number(self.path), tuple(saved), (self.path / RESULT).is_file()

    @property
    def began(self) -> bool:
        """Whether a run was started there, and not another file or folder put there."""
        others = [path for path in self.path.glob("*") if path.name not in (CHECKPOINTS, LEASE) and path.suffix != PART]
        return (self.path / CONFIG).is_file() or not others

    @property
    def nothing_to_lose(self) -> bool:
        """Whether a new run may have the folder: there is none, or its run has neither a checkpoint nor a result."""
        _, saved, finished = self.seen or self.state
        return self.began and not saved and not finished and not self._validated

    @property
    def _validated(self) -> bool:
        """Whether it had a checkpoint once, which somebody has removed: each validation has one."""
        metrics = self.path / METRICS
        return metrics.is_file() and b'"val/loss"' in metrics.read_bytes()

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
                if self.seen is not None and self.state != self.seen:
                    again = "start the command again"
                    raise TakenError(f"{self.path}: another process has trained here in the meantime; {again}")
                for folder in (self.path, self.checkpoints):
                    remove_parts(folder)
                if not self.begins_leg:
                    replace_text(self.path / CONFIG, as_yaml(config))
                self.write_json(START, {"number": self._next_start(Path(config.outputs))})
                self.store_hardware(hardware)
            except OSError as error:
                raise ConfigError(
                    f"outputs={config.outputs}: {self.path} cannot be written ({error.strerror}); "
                    "make the folder writable, or choose another one with outputs=FOLDER"
                ) from error
            undo.pop_all()  # it stays locked
            return lock

    def begin_leg(self, config: Config) -> None:
        """Before a leg's first checkpoint, until which the run is as it was: its result becomes an earlier one."""
        if self.begins_leg and (result := self.read_json(RESULT)) is not None:
            (self.path / RESULT).replace(self.path / RESULT_OF_LEG.format(result["steps"]))
        if self.begins_leg:
            replace_text(self.path / CONFIG, as_yaml(config))

    def _next_start(self, outputs: Path) -> int:
        """A number above that of each start in `outputs`, or beside a run that lies elsewhere. One file counts them."""
        home = outputs if self.path.is_relative_to(outputs) else self.path.parent
        try:
            with Lock(home, "two starts would have one number"):
                last = start_number(home) or max(map(start_number, list_runs(home).values()), default=0)
                number = 1 + max(last, start_number(self.path))
                RunFolder(home).write_json(START, {"number": number})
        except TakenError as error:  # not of this run's folder, so that another name would not help
            raise ConfigError(str(error)) from error
        return number

    def store_hardware(self, hardware: dict[str, Any]) -> None:
        """Stores how the run computes, for a resume and for the later jobs of its sweep."""
        self.write_json(HARDWARE, hardware)
        if self.sweep is not None:  # which took it from there, if it is not the first
            replace_text(self.sweep / HARDWARE, as_json(hardware))

    def stored_hardware(self) -> dict[str, Any] | None:
        """What the run computes on."""
        return self.read_json(HARDWARE)

    def hardware_so_far(self) -> dict[str, Any] | None:
        """What its steps until now, or else those of an earlier job of its sweep, were computed on."""
        stored = self.read_json(HARDWARE)
        if self.resumes_from is not None and stored is not None:
            return stored
        return None if self.sweep is None else RunFolder(self.sweep).read_json(HARDWARE)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The content of one of the run's files; None if it is not there, ConfigError if it is damaged."""
        path = self.path / name
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); remove it, and start again") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        replace_text(self.path / name, as_json(content))


def read_job(folder: Path) -> dict[str, Any] | None:
    """What a sweep's job recorded; `killed` in place of `running` if neither it nor its sweep has a process any more.

    None if it recorded nothing, ConfigError if that is damaged.
    """
    record = RunFolder(folder).read_json(JOB)
    if record is not None and record.get("status") == "running" and not (in_use(folder) or in_use(folder.parent)):
        record |= {"status": "killed", "error": "it was killed, or the machine went down"}
    return record


def as_yaml(config: Config) -> str:
    """The content of config.yaml. The plugins stand there as text: no command imports what a file names."""
    plugins = f"plugins: [{', '.join(names)}]\n" if (names := load_plugins()) else ""
    return f"format: {FORMAT}\n{plugins}" + OmegaConf.to_yaml(OmegaConf.create(literals(asdict(config))))


def read_config(path: Path) -> dict[str, Any]:
    """Every key of a run by its dotted name, one that its file does not state at what that implies.

    ConfigError if the file is damaged, or of another format.
    """
    stored = stated(path)
    stored.pop("plugins", None)
    names = {group: str(stored.get(name := f"{group}.name", KEYS[name].default)) for group in FAMILIES}
    return {key.name: key.implied for key in keys_of_choice(names).values()} | stored


def plugins_of(path: Path) -> Any:
    """The plugins that a run's file names, as it states them; None if there is no such run."""
    return stated(path).get("plugins") if (path / CONFIG).is_file() else None


def stated(path: Path) -> dict[str, Any]:
    """What a run's file states, by dotted name. ConfigError if it is damaged, or of another format."""
    file = path / CONFIG
    try:
        stored = flatten(dict(OmegaConf.to_container(OmegaConf.load(file), resolve=True)))  # type: ignore[arg-type]
    except Exception as error:  # of yaml's scanner, OmegaConf's, or of dict
        raise ConfigError(f"{file} is damaged ({' '.join(str(error).split())[:100]}); move {path} away") from error
    if (number := stored.pop("format", 1)) != FORMAT:
        fix = "train it again, or use the version of switch_lm that wrote it"
        raise ConfigError(f"{file} has format {number}, and this version reads format {FORMAT}; {fix}")
    return stored
