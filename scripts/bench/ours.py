"""Our training step in a plain loop: no Lightning, no logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from switch_lm.config import overrides as cli
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.routers.routing import Routing
from switch_lm.text.corpus import Corpus, load_corpus
from switch_lm.text.splits import Split
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.data import Batch, TrainingBatches
from switch_lm.training.hardware import compile_blocks
from switch_lm.training.module import SwitchModule

SETTLING_STEPS, SETTLING_ROWS = 60, 8


def composed(*overrides: str) -> Config:
    """The configuration of `python -m switch_lm.train OVERRIDES`."""
    return cli.composed(overrides)


@cache
def corpus() -> Corpus:
    return load_corpus(data_dir=Path("data"))


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(corpus().characters, corpus().start)


def batches(*, batch_size: int, context_length: int) -> Callable[[int], Batch]:
    """Batch number n of training; the negative numbers of warm-up calls mean batches far ahead."""
    ids = Split.of(corpus()).training_ids(corpus())
    data = TrainingBatches(ids, batch_size=batch_size, context_length=context_length, seed=0)
    return lambda number: data[number % 10**6]


def training_step(
    config: Config, *, precision: str, compiled: bool, weights: Mapping[str, Tensor] | None = None
) -> Step:
    """A step of a new model, or of one of such weights: losses, backward, clipping, optimizer, schedule."""
    torch.manual_seed(config.seed)
    module = SwitchModule(config, vocabulary(), corpus_sha256=corpus().sha256, precision=precision).train()
    if weights is not None:
        module.load_state_dict(weights)
    if compiled:
        compile_blocks(module.model)
    chosen = module.configure_optimizers()

    routings: list[Routing] = []  # of the step

    def loss(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = module.losses(batch.ids, batch.targets)
        module.drops.add(losses.routings)
        routings[:] = [routing.detached() for routing in losses.routings]
        return losses.total

    def after() -> None:
        """What routers learn from the step, and the schedule."""
        with torch.no_grad():
            for router, routing in zip(module.model.routers, routings, strict=True):
                router.after_step([routing])
        chosen["lr_scheduler"]["scheduler"].step()

    def useful() -> float:
        kept = {"selected_L": module.drops.selected_L, "kept_L": module.drops.kept_L}
        return run_ledger(config, vocab_size=len(vocabulary()), **kept).useful_per_step

    return Step(module, loss, chosen["optimizer"], clip=config.optim.grad_clip, schedule=after, useful=useful)


def settled(config: Config) -> Mapping[str, Tensor]:
    """Weights whose routers spread their load: new ones drop a third of all choices, as in the first steps of a run."""
    step = training_step(config, precision="fp32", compiled=False)
    draw = batches(batch_size=SETTLING_ROWS, context_length=config.model.context_length)
    for number in range(SETTLING_STEPS):
        step(draw(number))
    return step.model.state_dict()


@dataclass
class Step:
    """One training step on a batch, as every implementation takes it."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer
    _: KW_ONLY
    clip: float
    schedule: Callable[[], object] = lambda: None
    useful: Callable[[], float] | None = None  # FLOPs of the useful products of a step, without the optimizer's
    passes: list[float] = field(default_factory=list)  # seconds of the forward and backward pass of each call

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        started = time.perf_counter()
        self.loss(batch).backward()
        self.passes.append(time.perf_counter() - started)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.schedule()
