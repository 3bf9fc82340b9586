"""What a finished run reports: the content of result.json."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import lightning
import torch

from switch_lm.measure.ledger import ledger, run_ledger
from switch_lm.measure.machine_speed import matmul_rate
from switch_lm.optim.schedule import legs_in_words
from switch_lm.storage.provenance import commit, versions
from switch_lm.training.baselines import comparison
from switch_lm.training.callbacks.clock import Clock
from switch_lm.training.prepare import Training

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

SHARE_FROM_SECONDS = 10.0  # of training steps: measuring the rate of products takes about a second


def result_of(training: Training, trainer: lightning.Trainer) -> dict[str, Any]:
    """All of result.json; callbacks add their own `figures()`."""
    config, module, vocab_size = training.config, training.module, len(training.module.vocabulary)
    drops, sparse = module.drops, config.model.num_switch_layers > 0  # a dense model has no figures of routing
    best = trainer.checkpoint_callback.best_model_score  # type: ignore[union-attr]
    peak_memory = _peak_memory(training.hardware.device)  # before what is measured here
    figures: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        figures |= getattr(callback, "figures", dict)()
    if training.run.sweep is None:  # its seconds do not count
        data_dir = Path(config.data.dir)
        figures |= comparison(module.model, training.corpus, training.split, data_dir=data_dir)
    computation = _computation(training)
    return {
        "name": training.run.path.name,
        "val_loss": module.validation.loss,
        "best_val_loss": module.validation.loss if best is None else float(best),
        **_at_training_capacity(training),
        "steps": trainer.global_step,
        "legs": legs_in_words(config.optim, max_steps=config.trainer.max_steps, d_model=config.model.d_model),
        "parameters": config.model.num_params(vocab_size, config.router),
        "active_parameters": config.model.num_active_params(vocab_size, config.router),
        "dropped": drops.last_stretch if sparse else None,
        "dropped_whole_run": sum(drops.whole_run_L) / len(drops.whole_run_L) if sparse else None,
        "dropped_by_layer": list(drops.whole_run_L) if sparse else None,
        "load_max_over_mean": module.validation.load_max_over_mean,
        "router_entropy": module.validation.router_entropy,
        "expert_load": None if (load_LE := module.validation.load_LE) is None else load_LE.tolist(),
        **figures,
        **_share(training, trainer, computation["useful_per_step"]),
        "peak_memory_bytes": peak_memory,
        "computation": computation,
        "corpus_sha256": training.corpus.sha256,
        "validation_sha256": _hash_of_validation(training),
        "seed": config.seed,
        "hardware": training.run.stored_hardware(),
        "versions": versions(),
        "commit": commit(),
    }


def _hash_of_validation(training: Training) -> str:
    """Of the characters that are validated: losses of runs that share it can be compared."""
    ids = training.data.validation_ids.numpy().astype("<i4").tobytes()
    return hashlib.sha256(training.corpus.characters.encode() + b"\n" + ids).hexdigest()


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
    drops = training.module.drops
    inference = ledger(
        config.model,
        config.router,
        vocab_size=vocab_size,
        batch_size=config.data.batch_size,
        training=False,
        capacity_factor=config.model.capacity_factor,
    )
    plain = run_ledger(config, vocab_size=vocab_size, selected_L=drops.selected_L, kept_L=drops.kept_L).as_plain()
    return plain | {"inference_per_token": inference.forward}


def _share(training: Training, trainer: lightning.Trainer, useful_per_step: float) -> dict[str, float | None]:
    """The rate of this machine's matrix products in the run's precision, and the share of it that training reached.

    Of this start of the run: an earlier one may have been on another machine. None for several processes.
    """
    (clock,) = (one for one in trainer.callbacks if isinstance(one, Clock))  # type: ignore[attr-defined]
    steps, seconds = clock.of_this_start()
    if training.hardware.device != "cpu" or training.hardware.processes > 1 or seconds < SHARE_FROM_SECONDS:
        return {"matmul_flops_per_second": None, "matmul_share": None}
    rate = matmul_rate(torch.bfloat16 if training.hardware.precision == "bf16" else torch.float32)
    return {"matmul_flops_per_second": rate, "matmul_share": useful_per_step * steps / seconds / rate}
