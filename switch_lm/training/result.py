"""What a finished run reports: the content of result.json."""

import sys
from typing import Any

import lightning
import torch

from switch_lm.measure.ledger import ledger, run_ledger
from switch_lm.storage.provenance import commit, versions
from switch_lm.training.prepare import Training

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def result_of(training: Training, trainer: lightning.Trainer) -> dict[str, Any]:
    """All of result.json; callbacks add their own `figures()`."""
    config, module, vocab_size = training.config, training.module, len(training.module.vocabulary)
    drops, sparse = module.drops, config.model.num_switch_layers > 0  # a dense model has no figures of routing
    best = trainer.checkpoint_callback.best_model_score  # type: ignore[union-attr]
    figures: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        figures |= getattr(callback, "figures", dict)()
    return {
        "name": training.run.path.name,
        "val_loss": module.validation.loss,
        "best_val_loss": module.validation.loss if best is None else float(best),
        **_at_training_capacity(training),
        "steps": trainer.global_step,
        "parameters": config.model.num_params(vocab_size, config.router),
        "active_parameters": config.model.num_active_params(vocab_size, config.router),
        "dropped": drops.last_stretch if sparse else None,
        "dropped_whole_run": sum(drops.whole_run_L) / len(drops.whole_run_L) if sparse else None,
        "load_max_over_mean": module.validation.load_max_over_mean,
        "router_entropy": module.validation.router_entropy,
        "expert_load": None if (load_LE := module.validation.load_LE) is None else load_LE.tolist(),
        **figures,
        "peak_memory_bytes": _peak_memory(training.hardware.device),
        "computation": _computation(training),
        "corpus_sha256": training.corpus.sha256,
        "seed": config.seed,
        "hardware": training.run.stored_hardware(),
        "versions": versions(),
        "commit": commit(),
    }


def _peak_memory(device: str) -> int | None:
    """The most that this start of the run took on its GPU, or of its process on a CPU; None if nobody counts it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device != "cpu" or resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _at_training_capacity(training: Training) -> dict[str, float | None]:
    """The losses at the capacity of training, and the speed of that."""
    tally = training.module.at_capacity
    return {
        "val_loss_train_capacity": tally.evaluation.loss,
        "train_capacity_dropped": tally.evaluation.dropped if training.config.model.num_switch_layers else None,
        "inference_tokens_per_second": tally.predictions / tally.seconds,
    }


def _computation(training: Training) -> dict[str, Any]:
    """The run's ledger with the measured choices and drops, and the cost of a token at that capacity afterwards."""
    config, vocab_size = training.config, len(training.module.vocabulary)
    selected_L, dropped_L = training.module.drops.selected_L, training.module.drops.whole_run_L
    kept_L = [selected * (1.0 - dropped) for selected, dropped in zip(selected_L, dropped_L, strict=True)]
    inference = ledger(
        config.model,
        config.router,
        vocab_size=vocab_size,
        batch_size=config.data.batch_size,
        training=False,
        capacity_factor=config.model.capacity_factor,
    )
    plain = run_ledger(config, vocab_size=vocab_size, selected_L=selected_L, kept_L=kept_L).as_plain()
    return plain | {"inference_per_token": inference.forward}
