"""Every run as a row of plain numbers, for other programs."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from switch_lm.config.rules import show
from switch_lm.report.records import Record
from switch_lm.report.study import Study

RUN = ("run", "variant", "status", "reason", "seed")
FIGURES = (
    "val_loss", "val_loss_train_capacity", "best_val_loss", "steps", "training_seconds", "seconds", "tokens_per_second",
    "inference_tokens_per_second", "parameters", "active_parameters", "dropped", "dropped_whole_run",
    "train_capacity_dropped", "load_max_over_mean", "router_entropy", "computation.training", "computation.optimizer",
    "computation.inference_per_token", "computation.optimizer_per_step",
)  # fmt: skip
KINDS = ("attention", "feed_forward", "router", "useful", "padded", "dropped", "head", "executed")
PASSES = ("forward_per_token", "backward_per_token", "forward_per_step", "backward_per_step")
COMPUTATION = tuple(f"computation.{which}.{kind}" for which in PASSES for kind in KINDS)
CROSSED = ("threshold", "steps_to_threshold", "seconds_to_threshold")
LATER = ("name", "seed")  # told elsewhere in the row


def summary_csv(study: Study) -> str:
    """The same columns in the same order always; then what else the results hold, then the keys that differ."""
    others = {key for run in study.records for key, value in run.result.items() if not isinstance(value, (list, dict))}
    more = sorted(others - {*FIGURES, *COMPUTATION, *LATER})
    differing = differing_keys(study)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*RUN, *FIGURES, *CROSSED, *COMPUTATION, *more, *(f"config.{key}" for key in differing)])
    for run in study.records:
        results = [run.result.get(key) for key in (*COMPUTATION, *more)]
        row = [*_run(study, run), *(run.result.get(key) for key in FIGURES), *_crossed(study, run), *results]
        keys = [show(run.config[key]) if key in run.config else "" for key in differing]
        table.writerow([*map(_plain, row), *keys])
    return text.getvalue()


def differing_keys(study: Study) -> list[str]:
    """The keys in which the runs that have a configuration differ, but for seed and name."""
    configs = [run.config for run in study.records if run.folder is not None and run.config]
    keys = sorted({key for config in configs for key in config} - {"seed", "name"})
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _run(study: Study, run: Record) -> list[Any]:
    return [run.name, study.label_of(run), run.status, run.reason, run.seed]


def _crossed(study: Study, run: Record) -> list[float | None]:
    """When this run itself reached the threshold."""
    if study.threshold is None:
        return [None, None, None]
    hit = study.threshold.crossed(run)
    return [study.threshold.loss, hit.steps if hit else None, hit.seconds if hit else None]


def _plain(value: Any) -> Any:
    """Nothing for what is missing or no number; true and false as in the configuration."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return show(value) if isinstance(value, bool) else value
