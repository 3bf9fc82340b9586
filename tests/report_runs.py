"""Small stored runs, as training leaves them, from which reports are built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from small_models import OF_ROUTER, router_options

from switch_lm.config.rules import flatten
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import ledger, run_ledger
from switch_lm.model.config import ModelConfig
from switch_lm.reporting.answer import verdict
from switch_lm.reporting.caveats import DEFINITIONS, caveats
from switch_lm.reporting.comparisons import Study, compare, study
from switch_lm.reporting.records import Record, find_sources, read_records
from switch_lm.reporting.tables import comparison_table
from switch_lm.storage.metrics import MetricsFile
from switch_lm.storage.run_folder import as_yaml

VOCAB, STEPS, EVERY = 65, 100, 25
HARDWARE = {"device": "cpu", "precision": "fp32", "compile": False, "name": "test machine", "threads": 2}
VERSIONS = {"python": "3.11", "switch_lm": "0.1.0", "torch": "2.13", "lightning": "2.6", "hydra-core": "1.3"}


def config_of(seed: int = 0, **changes: Any) -> Config:
    """The default configuration with few steps; `changes` are keys of it, of its router or of its model."""
    own = {key: changes.pop(key) for key in ("alpha", "name", "z_loss", "balance") if key in changes}
    of_router = {key: changes.pop(key) for key in list(changes) if key in OF_ROUTER}
    config = Config(model=ModelConfig(**changes), router=router_options(**of_router), seed=seed, **own)
    config.trainer.max_steps, config.trainer.val_every = STEPS, EVERY
    return config


def result_of(config: Config, loss: float, **changes: Any) -> dict[str, Any]:
    """What a run of this configuration would store; all but the loss follows from closed forms."""
    model, sparse = config.model, config.model.num_switch_layers > 0
    factor = model.capacity_factor if sparse else None
    dropped = 0.0 if factor is None else max(0.0, 0.1 - 0.05 * factor)
    work = run_ledger(config, vocab_size=VOCAB)
    inference = ledger(
        model,
        config.router,
        vocab_size=VOCAB,
        batch_size=config.data.batch_size,
        training=False,
        capacity_factor=factor,
    )
    return {
        "name": "a run",
        "val_loss": loss,
        "best_val_loss": loss,
        "val_loss_train_capacity": loss + dropped,
        "train_capacity_dropped": dropped if sparse else None,
        "inference_tokens_per_second": 50_000.0,
        "steps": STEPS,
        "seconds": 2.0 * STEPS,
        "training_seconds": 1.0 * STEPS,
        "tokens_per_second": 8192.0,
        "parameters": model.num_params(VOCAB, config.router),
        "active_parameters": model.num_active_params(VOCAB, config.router),
        "dropped": dropped if sparse else None,
        "dropped_whole_run": 2 * dropped if sparse else None,
        "load_max_over_mean": 1.5 if sparse else None,
        "router_entropy": 0.7 if sparse else None,
        "seed": config.seed,
        "corpus_sha256": "0123456789abcdef",
        "hardware": HARDWARE,
        "versions": VERSIONS,
        "commit": "0123456789ab",
        "computation": work.as_plain() | {"inference_per_token": inference.forward},
    } | changes


def write_run(
    folder: Path,
    config: Config,
    loss: float | None = 1.5,
    *,
    curve: Sequence[tuple[int, float, float | None]] | None = None,
    job: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run's folder. `loss` None: it has no result yet. `curve`: (step, val/loss, training seconds)."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(config))
    if loss is not None:
        (folder / "result.json").write_text(json.dumps(result_of(config, loss, **changes)))
    if job is not None:
        (folder / "job.json").write_text(json.dumps(job))
    if curve is None:  # straight down from 2.5 to the loss, a second a step
        end = 1.5 if loss is None else loss
        curve = [(s, end + (1 - s / STEPS), 1.0 * s) for s in range(EVERY, STEPS + 1, EVERY)]
    if curve:
        write_curve(folder, curve)
    return folder


def record(config: Config, loss: float = 1.5, *, sweep: str | None = None, **changes: Any) -> Record:
    """A finished run, without files or a curve."""
    where = Path(sweep) if sweep else None
    result = flatten(result_of(config, loss, **changes))
    return Record("run", "done", sweep=where, config=flatten(asdict(config)), result=result)


def studied(
    folder: Path, losses: Mapping[str, Sequence[float | None]], threshold: float | None = None, **changes: Any
) -> Study:
    """A sweep of some of MODELS, each with a loss for every seed."""
    sweep = write_sweep(folder / "sweep", {name: MODELS[name] for name in losses}, losses, **changes)
    return study(read_records(find_sources([sweep])), threshold=threshold)


def words(study: Study) -> tuple[str, str]:
    """The verdict, and as lines the caveats of these runs."""
    differences = compare(study)
    return verdict(study, differences), "\n".join(one for one in caveats(study) if one not in DEFINITIONS)


def rows(study: Study) -> list[tuple[str, ...]]:
    """The table of all comparisons: first, second, what, difference, interval, verdict, family, kind."""
    texts = [[cell.text for cell in row] for row in comparison_table(compare(study)).rows]
    return [(*others, *last.split(": ", 1)) for *others, last in texts]


def write_curve(folder: Path, curve: Sequence[tuple[int, float, float | None]]) -> None:
    file = MetricsFile(folder, first_step=0)
    for step, loss, seconds in curve:
        file.write({"train/loss": loss - 0.1}, step)
        file.write({"val/loss": loss} | ({} if seconds is None else {"perf/training_seconds": seconds}), step)
    file.close()


def write_sweep(
    sweep: Path, variants: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Sequence[float | None]], **changes: Any
) -> Path:
    """A sweep of `variants` (keys of the model) with a loss for each seed, None if that failed.

    `changes` go to every result.
    """
    planned: list[object] = []
    for name, keys in variants.items():
        for seed, loss in enumerate(losses[name]):
            job = {"job": len(planned), "overrides": {"seed": seed, "variant": name}, "status": "done", "seconds": 1.0}
            planned.append(job["overrides"])
            if loss is None:
                failed = sweep / f"seed={seed},variant={name}"
                failed.mkdir(parents=True)
                (failed / "job.json").write_text(json.dumps(job | {"status": "failed", "error": "too hot"}))
                continue
            write_run(sweep / f"seed={seed},variant={name}", config_of(seed, **keys), loss, job=job, **changes)
    write_plan(sweep, planned)
    return sweep


def write_plan(sweep: Path, jobs: Sequence[object] | None) -> None:
    """`jobs` None: a search."""
    sweep.mkdir(parents=True, exist_ok=True)
    planned = None if jobs is None else list(jobs)
    plan = {"command": "python -m switch_lm.train experiment=test", "jobs": planned, "commit": "0123456789ab"}
    (sweep / "sweep.json").write_text(json.dumps(plan | {"started": "2026-01-01T00:00:00"}))


DENSE: dict[str, Any] = {"switch_every": 0}
ONE: dict[str, Any] = {"capacity_factor": 1.0}
DROPLESS: dict[str, Any] = {"capacity_factor": None}
MODELS: dict[str, dict[str, Any]] = {
    "dense": DENSE, "wide": DENSE | {"d_ff": 4096}, "one": ONE, "1.25": {}, "2.0": {"capacity_factor": 2.0},
    "dropless": DROPLESS, "top2": {"top_k": 2, "capacity_factor": 2.5}, "random": DROPLESS | {"random_drop_rate": 0.07},
    "half": DROPLESS | {"switch_every": 2},
}  # fmt: skip
