"""What a run wrote while it trained, from TensorBoard's own files."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switch_lm.report.statistics import Point

# All scalars; of everything else one, which is read over and not used.
SIZES = {"scalars": 0, "tensors": 1, "histograms": 1, "compressedHistograms": 1, "images": 1, "audio": 1}


@dataclass(frozen=True)
class Curves:
    """Validations in order of steps, the training loss by step, and what could not be read."""

    validations: tuple[Point, ...] = ()
    training: tuple[tuple[int, float], ...] = ()
    last_step: int | None = None  # of anything written
    fault: str = ""


def read_curves(folder: Path) -> Curves:
    """Never an error: a report of many runs must not end at one broken file."""
    if not any(folder.glob("events.out.tfevents.*")):
        return Curves(fault="it has no events file: no learning curve")
    try:
        scalars = _scalars(folder)
    except Exception as error:  # the reader's errors share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return Curves(fault=f"its events file can not be read ({reason}): no learning curve")
    steps = [step for points in scalars.values() for step in points]
    if not scalars.get("val/loss"):
        return Curves(
            training=_finite(scalars.get("train/loss", {})),
            last_step=max(steps, default=None),
            fault="there is no validation in its events file: no learning curve",
        )
    seconds = scalars.get("perf/training_seconds", {})
    validations = tuple(Point(step, loss, _or_none(seconds.get(step))) for step, loss in _finite(scalars["val/loss"]))
    fault = "" if len(validations) == len(scalars["val/loss"]) else "its learning curve holds NaN or infinity, left out"
    return Curves(validations, _finite(scalars.get("train/loss", {})), max(steps), fault)


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """By tag, then by step; the last value of a step counts, as where a run was taken up again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logging.getLogger("tensorboard")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would print each fault that is told in the report
    try:
        events: Any = EventAccumulator(str(folder), size_guidance=SIZES)
        events.Reload()
    finally:
        log.setLevel(level)
    tags = {"val/loss", "perf/training_seconds", "train/loss"} & set(events.Tags()["scalars"])
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}


def _finite(points: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((step, value) for step, value in sorted(points.items()) if math.isfinite(value))


def _or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
