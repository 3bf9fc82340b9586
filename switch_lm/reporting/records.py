"""What is known of each run: its configuration, its result, its curves, or why there is no result."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from switch_lm.config.rules import ConfigError, flatten, show
from switch_lm.reporting.sources import Source, read_json
from switch_lm.storage.run_folder import CONFIG, JOB, RESULT, read_config

DONE, FAILED, UNFINISHED, NOT_RUN = "done", "failed", "unfinished", "not run"
LONGEST_REASON, LONGEST_FAULT = 300, 200
# TensorBoard keeps all scalars, and one each of what is not used here.
SIZES = {"scalars": 0, "tensors": 1, "histograms": 1, "compressedHistograms": 1, "images": 1, "audio": 1}


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
    fault: str = ""


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

    @property
    def seed(self) -> int | None:
        """None if neither the configuration nor the result says it."""
        seed = self.config.get("seed", self.result.get("seed"))
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    def figure(self, key: str) -> float | None:
        """A finite number of the result, such as `val_loss` or `computation.training`; None if it is missing."""
        return finite(self.result.get(key))


def finite(value: object) -> float | None:
    """The value if it is a finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def crossing(curve: Sequence[Point], threshold: float) -> Crossing | None:
    """The first time the loss is at the threshold or below, on the straight line between two validations."""
    i = next((i for i, point in enumerate(curve) if point.loss <= threshold), None)
    if i is None:
        return None
    point, before = curve[i], curve[i - 1]
    if i == 0:
        return Crossing(point.step, point.seconds, at_most=True)
    share = (before.loss - threshold) / (before.loss - point.loss)
    seconds = None
    if before.seconds is not None and point.seconds is not None:
        seconds = before.seconds + share * (point.seconds - before.seconds)
    return Crossing(before.step + share * (point.step - before.step), seconds)


def read_records(sources: Iterable[Source]) -> tuple[Record, ...]:
    return tuple(_read(source) for source in sources)


def _read(source: Source) -> Record:
    if source.folder is None:
        overrides = " ".join(f"{key}={show(value)}" for key, value in source.planned.items())
        reason = f"planned, not started: {overrides}" if overrides else "planned, not started"
        return Record(source.name, NOT_RUN, sweep=source.sweep, reason=reason, config=dict(source.planned))
    config, fault = _config(source.folder)
    result, job = read_json(source.folder / RESULT), read_json(source.folder / JOB) or {}
    status = DONE if result else FAILED if job.get("status") == "failed" else UNFINISHED
    faults = [fault]
    if result is None and (source.folder / RESULT).exists():
        faults.append(f"{RESULT} cannot be read: it is cut off, or is not JSON")
    curves = read_curves(source.folder) if config else Curves()
    if status == DONE:
        faults.append(curves.fault or _cut_off(curves, result or {}))
    reason, flat = _reason(status, job, config, curves), flatten(result or {})
    record = Record(source.name, status, source.folder, source.sweep, reason, config, flat, curves)
    if status == DONE and config and record.seed is None:
        faults.append("its seed is not known: it is neither averaged nor compared with other runs")
    return replace(record, faults=tuple(filter(None, faults)))


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    """Every key, those that the run did not know yet at their defaults, but no seed that it does not state.

    {} and what is wrong, if it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        return {}, "" if (folder / JOB).is_file() else f"it has no {CONFIG}"
    try:
        return read_config(folder), ""
    except ConfigError as error:
        return {}, str(error)


def _cut_off(curves: Curves, result: Mapping[str, Any]) -> str:
    steps, last = result.get("steps"), curves.validations[-1].step if curves.validations else None
    if last is None or not isinstance(steps, int) or last >= steps:
        return ""
    return f"its events file ends at the validation of step {last}, of {steps}"


def _reason(status: str, job: Mapping[str, Any], config: Mapping[str, Any], curves: Curves) -> str:
    if status == FAILED:
        return " ".join(str(job.get("error") or "no reason was recorded").split())[:LONGEST_REASON]
    if status == DONE:
        return ""
    of, last = config.get("trainer.max_steps", "?"), curves.last_step
    return f"no step of {of} recorded" if last is None else f"step {last} of {of} is the last one recorded"


def read_curves(folder: Path) -> Curves:
    """The run's curves from TensorBoard's files. Never an error: one broken file must not end a report of many runs."""
    if not any(folder.glob("events.out.tfevents.*")):
        return Curves(fault="it has no events file: no learning curve")
    try:
        scalars = _scalars(folder)
    except Exception as error:  # the reader's errors share no base class
        reason = " ".join(str(error).split())[:LONGEST_FAULT] or type(error).__name__
        return Curves(fault=f"its events file cannot be read ({reason}): no learning curve")
    losses, seconds = scalars.get("val/loss", {}), scalars.get("perf/training_seconds", {})
    points = tuple(Point(step, loss, finite(seconds.get(step))) for step, loss in _finite(losses))
    last_step = max((step for curve in scalars.values() for step in curve), default=None)
    fault = "" if losses else "there is no validation in its events file: no learning curve"
    if len(points) < len(losses):
        fault = "its learning curve holds NaN or infinity, left out"
    return Curves(points, _finite(scalars.get("train/loss", {})), last_step, fault)


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag, then by step; the last value of a step counts, as where a run was resumed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logging.getLogger("tensorboard")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would print each fault that the report states
    try:
        events: Any = EventAccumulator(str(folder), size_guidance=SIZES)
        events.Reload()
    finally:
        log.setLevel(level)
    tags = {"val/loss", "perf/training_seconds", "train/loss"} & set(events.Tags()["scalars"])
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def _finite(points: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((step, value) for step, value in sorted(points.items()) if math.isfinite(value))
