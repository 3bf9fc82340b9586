"""What a finished run found: the content of result.json."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from switch_lm import __version__
from switch_lm.config.schema import Config
from switch_lm.measure.evaluation import evaluate
from switch_lm.measure.ledger import ledger, run_ledger
from switch_lm.training.module import SwitchModule


def routing_figures(module: SwitchModule) -> dict[str, float | None]:
    """What was dropped and how even the load is; None for a dense model, which has no experts."""
    drops, validation, sparse = module.drops, module.validation, module.config.model.num_switch_layers > 0
    return {
        "dropped": drops.last_stretch if sparse else None,
        "dropped_whole_run": sum(drops.whole_run_L) / len(drops.whole_run_L) if sparse else None,
        "load_max_over_mean": validation.load_max_over_mean,
        "router_entropy": validation.router_entropy,
    }


def at_training_capacity(module: SwitchModule, validation_ids: Tensor) -> dict[str, float | None]:
    """The whole validation split with the capacity of training, in batches of its size, and how fast that goes."""
    config, started = module.config, time.perf_counter()
    with torch.compiler.set_stance("force_eager"):
        found = evaluate(
            module.model,
            validation_ids,
            context_length=config.model.context_length,
            batch_size=config.data.batch_size,
            capacity_factor=config.model.capacity_factor,
            precision=module.precision_name,
        )
    return {
        "val_loss_train_capacity": found.loss,
        "train_capacity_dropped": found.dropped if config.model.num_switch_layers else None,
        "inference_tokens_per_second": found.predictions / (time.perf_counter() - started),
    }


def computation(config: Config, vocab_size: int, dropped_L: list[float]) -> dict[str, Any]:
    """The ledger of the run, with the drops that were measured, and what a token costs at that capacity afterwards."""
    kept_L = [config.model.top_k * (1.0 - dropped) for dropped in dropped_L]
    inference = ledger(
        config.model,
        vocab_size=vocab_size,
        batch_size=config.data.batch_size,
        training=False,
        capacity_factor=config.model.capacity_factor,
    )
    training = run_ledger(config, vocab_size=vocab_size, kept_L=kept_L)
    return training.as_plain() | {"inference_per_token": inference.forward}


def versions() -> dict[str, str]:
    """Of Python, this package and what it computes with."""
    others = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"python": platform.python_version(), "switch_lm": __version__} | others


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" if it was changed; None without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
