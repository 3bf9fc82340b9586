"""What a run's row on TensorBoard's HParams page holds: the same columns in every run, and none of them empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from switch_lm.config.rules import flatten, show
from switch_lm.config.schema import Config

CAPACITY = "model.capacity_factor"
COLUMNS = (
    "model.num_layers", "model.d_model", "model.d_ff", "model.context_length", "model.num_experts",
    "model.top_k", "model.switch_every", CAPACITY, "model.dropout", "alpha", "optim.name", "optim.lr",
    "optim.matrix_lr", "data.batch_size", "trainer.max_steps", "seed",
)  # fmt: skip
METRICS = ("val_loss", "best_val_loss", "dropped", "tokens_per_second")
NO_METRICS = {f"hp/{name}": math.nan for name in METRICS}  # before the end; with none the page shows nothing


def row(config: Config) -> dict[str, Any]:
    """The run's hyperparameters. The capacity factor is text: of numbers and none the page would draw the numbers."""
    model, flat = config.model, flatten(asdict(config))
    factor = "dropless" if model.capacity_factor is None else show(float(model.capacity_factor))
    return {key: flat[key] for key in COLUMNS} | {CAPACITY: factor if model.num_switch_layers else "dense"}


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a finished run; a dense one drops nothing. A line is drawn only through runs that have all."""
    return {f"hp/{name}": result[name] or 0.0 for name in METRICS}
