"""What is known of each run: its configuration, its result, its curves, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from switch_lm.config import ConfigError, flatten, show
from switch_lm.report.curves import Curves, read_curves
from switch_lm.report.sources import Source, read_json
from switch_lm.run_folder import CONFIG, JOB, RESULT, read_config

DONE, FAILED, UNFINISHED, NOT_RUN = "done", "failed", "unfinished", "not run"
LONGEST_REASON = 300


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
        seed = self.config.get("seed", self.result.get("seed"))
        return seed if isinstance(seed, int) else None

    def figure(self, key: str) -> float | None:
        """A finite number of the result, such as `val_loss` or `computation.training`; None if it is missing."""
        value = self.result.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return float(value)


def read_records(sources: Iterable[Source]) -> tuple[Record, ...]:
    return tuple(_read(source) for source in sources)


def _read(source: Source) -> Record:
    if source.folder is None:
        overrides = " ".join(f"{key}={show(value)}" for key, value in source.planned.items())
        reason = f"planned, not started: {overrides}" if overrides else "planned, not started"
        return Record(source.name, NOT_RUN, sweep=source.sweep, reason=reason, config=dict(source.planned))
    config, fault = _config(source.folder)
    result = read_json(source.folder / RESULT)
    job = read_json(source.folder / JOB) or {}
    status = DONE if result else FAILED if job.get("status") == "failed" else UNFINISHED
    faults = [fault] if fault else []
    if result is None and (source.folder / RESULT).exists():
        faults.append(f"{RESULT} can not be read: it is not whole, or no JSON")
    curves = read_curves(source.folder) if config else Curves()
    if status == DONE:
        faults += [curves.fault] if curves.fault else _cut_off(curves, result or {})
    reason = _reason(status, job, config, curves)
    flat = flatten(result or {})
    return Record(source.name, status, source.folder, source.sweep, reason, config, flat, curves, tuple(faults))


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    """Every key, those that the run did not know yet at their defaults; or {} and what is wrong."""
    if not (folder / CONFIG).is_file():
        return {}, "" if (folder / JOB).is_file() else f"it has no {CONFIG}"
    try:
        return read_config(folder), ""
    except ConfigError as error:
        return {}, str(error)


def _cut_off(curves: Curves, result: Mapping[str, Any]) -> list[str]:
    steps = result.get("steps")
    if not curves.validations or not isinstance(steps, int) or curves.validations[-1].step >= steps:
        return []
    return [f"its events file ends at the validation of step {curves.validations[-1].step}, of {steps}"]


def _reason(status: str, job: Mapping[str, Any], config: Mapping[str, Any], curves: Curves) -> str:
    if status == FAILED:
        return " ".join(str(job.get("error") or "no reason was recorded").split())[:LONGEST_REASON]
    if status == UNFINISHED:
        of = config.get("trainer.max_steps", "?")
        last = curves.last_step
        return f"no step of {of} recorded" if last is None else f"step {last} of {of} is the last one recorded"
    return ""
