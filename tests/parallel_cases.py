"""The same small runs in one, two and four processes, in float64: what each of them logs and has learned at its end.

Real processes, connected by gloo, run all cases one after the other; they are forked from one that has torch loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from small_models import family, short_run

from switch_lm.config.schema import Config
from switch_lm.optim.options import AdamWOptions, MuonOptions
from switch_lm.routers.options import BalanceOptions
from switch_lm.storage.run_folder import RunFolder
from switch_lm.training import data, run
from switch_lm.training.callbacks.base import StepCallback
from switch_lm.training.callbacks.checkpoints import best_checkpoints
from switch_lm.training.callbacks.step_scalars import StepScalars
from switch_lm.training.log import Log
from switch_lm.training.parallel.group import Group
from switch_lm.training.parallel.strategy import connect, store_in
from switch_lm.training.prepare import prepare
from switch_lm.training.signals import StopSignals

STEPS, HALF = 20, 10
RESUMED = "quantile"  # the case that is run once more from its checkpoint after HALF of the steps
ADAMW, MUON = AdamWOptions(warmup_steps=0), MuonOptions(warmup_steps=0)


def routed(name: str, optim: Any, balance: str = "loss", **changes: Any) -> Callable[[Config], Config]:
    """A change of the configuration: a router without noise and capacity, an optimizer, a balance."""

    def changed(config: Config) -> Config:
        of_router = {key: changes[key] for key in changes if not hasattr(config, key)}
        of_config = {key: changes[key] for key in changes if hasattr(config, key)}
        router = family(name, **{"jitter": 0.0} | of_router)
        balanced = BalanceOptions(name=balance, rate=0.01)
        return replace(config, router=router, optim=optim, balance=balanced, **of_config)

    return changed


# Those whose numbers are those of one process.
EQUAL: dict[str, Callable[[Config], Config]] = {
    "switch": routed("switch", ADAMW, importance=0.05, z_loss=0.01),
    "topk": routed("topk", MUON, top_k=2, renormalize_gates=True, balance_over="sequence", alpha=1.0, importance=0.05),
    "step": routed("switch", ADAMW, balance_over="step", alpha=1.0),
    "sigmoid": routed("sigmoid", ADAMW, "sign", top_k=2),
    "quantile": routed("switch", MUON, "quantile"),
    "threshold": routed("threshold", ADAMW, warmup_steps=0),
    "hash": routed("hash", MUON, "none"),
    "frozen": routed("frozen", ADAMW),
}
# Those that choose among the tokens of a process: as one process that has each one's rows as a group of its own.
GROUPED = {"capacity": routed("switch", ADAMW), "expert_choice": routed("expert_choice", ADAMW)}
# Planted faults, after which the numbers must differ.
FAULTS = {
    "own_loads": routed("switch", ADAMW, balance_over="micro_batch", alpha=1.0),
    "same_rows": routed("switch", ADAMW, alpha=1.0),
}
IN_FLOAT32 = "in_float32"  # as a run computes
CASES = EQUAL | GROUPED | FAULTS | {IN_FLOAT32: routed("switch", MUON, importance=0.05, z_loss=0.01)}


def configured(name: str, size: int, folder: Path) -> Config:
    config = CASES[name](short_run(folder))
    trainer = replace(config.trainer, max_steps=STEPS, val_every=STEPS, processes=size, threads=size)
    factor = 1.0 if name in GROUPED else None
    if name in ("switch", "step"):
        trainer = replace(trainer, accumulate=2)
    config = replace(
        config, trainer=trainer, data=replace(config.data, batch_size=8), name=f"{name}{size}",
        model=replace(config.model, capacity_factor=factor, eval_capacity_factor=None),
    )  # fmt: skip
    if name == "expert_choice":  # no two rows begin alike: of tied tokens rounding would choose
        letters = random.Random(0).choices([chr(0x4E00 + i) for i in range(3000)], k=4000)
        Path(str(config.data.path)).write_text("".join(letters), encoding="utf-8")
    return config


class Probe(StepCallback):
    """Keeps the first step's gradients, and saves a checkpoint after half of the steps."""

    def __init__(self, half: Path | None) -> None:
        self.grads, self.half = dict[str, torch.Tensor](), half

    def after_step(self, module: Any, step: int, micro_batches: Sequence[Any]) -> None:
        if step == HALF and self.half is not None:
            module.trainer.save_checkpoint(self.half)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.grads:
            named = pl_module.model.named_parameters()
            self.grads = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


class Scalars:
    """A board that keeps scalars by tag, then by step."""

    name = "scalars"

    def __init__(self) -> None:
        self.by_tag: dict[str, dict[int, float]] = {}

    def scalars(self, values: Any, step: int) -> None:
        for tag, value in values.items():
            self.by_tag.setdefault(tag, {})[step] = value

    def histogram(self, tag: str, counts: Sequence[int], step: int) -> None:
        pass


def trained(
    name: str, group: Group, folder: Path, *, parts: int | None = None, resumes_from: Path | None = None
) -> dict[str, Any]:
    """Runs a case as this process of the group. `parts`: into how many groups one process divides its rows."""
    half = folder / "half.ckpt" if group.rank == 0 and name == RESUMED else None
    config, probe, board = configured(name, group.size, folder), Probe(half), Scalars()
    path, boards = folder / str(config.name), list[Any]([board] if group.rank == 0 else [])
    callbacks: list[Callback] = [probe, StepScalars(config), *best_checkpoints(path, config.trainer)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "callbacks_of", lambda training: callbacks)
        if parts is not None:
            patch.setattr(type(config.router), "num_groups", lambda self, rows: 1 if rows % parts else parts)
        if name == "same_rows" and group.size > 1:
            item = data.TrainingBatches.__getitem__
            patch.setattr(data.TrainingBatches, "__getitem__", lambda self, n: item(_first(self), n))
        signals = StopSignals(folder)
        with prepare(config, RunFolder(path), signals=signals) as training:
            module = training.module if name == IN_FLOAT32 else training.module.double()
            module.group, module.run_log = group, Log(boards=boards)
            run.trainer_of(training, group).fit(module, training.data, ckpt_path=resumes_from)
    weights = {key: value.clone() for key, value in module.model.state_dict().items()}
    return {
        "scalars": board.by_tag, "grads": probe.grads, "weights": weights,
        "validation": module.validation.state_dict(), "drops": module.drops.state_dict(),
    }  # fmt: skip


def _first(batches: data.TrainingBatches) -> data.TrainingBatches:
    batches.rank = 0
    return batches


def _process(rank: int, folder: Path) -> None:
    """Rank `rank` of four, then of two if there is one."""
    torch.set_num_threads(1)
    try:
        for size in filter(lambda size: rank < size, (4, 2)):
            own, names = folder / f"{size}_{rank}", CASES if size == 2 else EQUAL
            own.mkdir()
            (folder / str(size)).mkdir(exist_ok=True)
            connect(store_in(folder / str(size), size), Group(rank=rank, size=size), device="cpu", seconds=100)
            results = {name: trained(name, Group(rank=rank, size=size), own) for name in names}
            half = folder / f"{size}_0" / "half.ckpt"
            results["resumed"] = trained(RESUMED, Group(rank=rank, size=size), own, resumes_from=half)
            torch.save(results, folder / f"{size}_{rank}.pt")
            dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


def run_all(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each process of each size has, by case. One process divides the rows of a `GROUPED` case into two groups."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parallel_cases"])
    processes = [context.Process(target=_process, args=(rank, folder)) for rank in range(4)]
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not pass sys.path on
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        for process in processes:
            process.start()
    alone = {name: trained(name, Group(), folder, parts=2 if name in GROUPED else None) for name in CASES}
    for process in processes:
        process.join(300)
    problems = [file.read_text() for file in folder.glob("*.error")]
    assert not problems, "\n".join(problems)
    loaded = {
        size: [torch.load(folder / f"{size}_{rank}.pt", weights_only=True) for rank in range(size)] for size in (2, 4)
    }
    return {1: [alone]} | loaded
