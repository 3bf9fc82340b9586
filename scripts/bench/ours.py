"""Our training step in a plain loop: no Lightning, no logs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from switch_lm.config import overrides as cli
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.text.corpus import Corpus, load_corpus
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.text.windows import split
from switch_lm.training.data import Batch, TrainingBatches
from switch_lm.training.hardware import Hardware, compile_blocks, detect
from switch_lm.training.module import SwitchModule


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
    ids = split(torch.from_numpy(corpus().ids))[0]
    data = TrainingBatches(ids, batch_size=batch_size, context_length=context_length, seed=0)
    return lambda number: data[number % 10**6]


def hardware(config: Config) -> Hardware:
    return detect(config, training_flops=run_ledger(config, vocab_size=len(vocabulary())).training)


def training_step(config: Config, *, precision: str, compiled: bool) -> Callable[[Batch], None]:
    """A step of a new model: losses, backward, clipping, optimizer, schedule."""
    torch.manual_seed(config.seed)
    module = SwitchModule(config, vocabulary(), corpus_sha256=corpus().sha256, precision=precision).train()
    if compiled:
        compile_blocks(module.model)
    chosen = module.configure_optimizers()

    def loss(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return module.losses(batch.ids, batch.targets).total

    schedule = chosen["lr_scheduler"]["scheduler"].step
    return step(module, loss, chosen["optimizer"], clip=config.optim.grad_clip, schedule=schedule)


def step(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    *,
    clip: float,
    schedule: Callable[[], object] = lambda: None,
) -> Callable[[Batch], None]:
    """One training step on a batch, as every implementation takes it."""

    def run(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule()

    return run
