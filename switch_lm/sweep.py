"""The jobs of one sweep: each in its own folder, failures listed and not fatal, one table at the end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

JOB = "job.json"
MAX_NAME = 100


def run_job(cfg: DictConfig, train: Callable[..., dict[str, Any]]) -> float | None:
    """Trains one job in its folder of the sweep and records what came of it; an error ends only this job.

    Returns val_loss, which a searching sweeper minimises.
    """
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    folder = Path(hydra.sweep.dir) / job_name(hydra.job.num, overrides)
    record: dict[str, Any] = {"job": hydra.job.num, "overrides": as_mapping(overrides)}
    print(f"\nJob {hydra.job.num}: {' '.join(overrides)}", flush=True)
    try:
        result = train(cfg, folder=folder)
    except Exception as error:  # whatever went wrong, the other jobs run
        record |= {"status": "failed", "error": str(error) or type(error).__name__}
        print(f"Job {hydra.job.num} FAILED: {record['error']}", file=sys.stderr, flush=True)
    else:
        record |= {"status": "done", "result": result}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return float(record["result"]["val_loss"]) if record["status"] == "done" else None


def job_name(number: int, overrides: list[str]) -> str:
    """A folder name that TensorBoard shows: the job's number and its overrides, what a path can't hold replaced."""
    text = re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join(o.removeprefix("model.") for o in overrides))
    return f"{number:03d}_{text}"[:MAX_NAME].rstrip("_")


def as_mapping(overrides: list[str]) -> dict[str, Any]:
    """Override strings as key -> value."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.get_key_element().lstrip("+~"): _plain(override.value()) for override in parsed}


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """What each job of a sweep recorded, in order of number."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*/{JOB}")]
    return sorted(records, key=lambda record: int(record["job"]))


class SweepSummary(Callback):
    """Prints the table when all jobs are over, from files: jobs may be other processes. Exit code 1 if one failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from switch_lm.summary import make_console, print_sweep  # torch is behind it

        folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")))
        rows = read_jobs(folder)
        if rows:
            print_sweep(make_console(), rows, folder=folder)
        if not rows or any(row["status"] != "done" for row in rows):
            sys.exit(1)
