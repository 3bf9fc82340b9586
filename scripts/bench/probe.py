"""Times blocks of steps inside a run of the trainer: with logging, without, and of a bare loop in between."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bench import ours
from switch_lm.callbacks import Clock, ConsoleProgress

NEVER = 10**9


class Probe(Callback):
    """`seconds` of the blocks of each kind, in order; the first block, which warms up, is not among them."""

    def __init__(self, block: int, precision: str) -> None:
        self.block, self.precision = block, precision
        self.seconds: dict[str, list[float]] = {"logging": [], "quiet": [], "bare": []}
        self.validations: list[float] = []
        self.kind, self.started, self.bare_steps, self.log_every = "warm up", 0.0, 0, 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.block:
            return
        ended = time.perf_counter()
        if self.kind == "warm up":
            self.log_every = pl_module.config.logger.log_every
            self._bare(trainer, pl_module)
        else:
            self.seconds[self.kind].append(ended - self.started)
        if self.kind == "quiet":
            self.seconds["bare"].append(self._bare(trainer, pl_module))
        self.kind = "quiet" if self.kind == "logging" else "logging"
        self._log(trainer, pl_module, self.log_every if self.kind == "logging" else NEVER)
        self.started = time.perf_counter()

    def _log(self, trainer: lightning.Trainer, pl_module: Any, every: int) -> None:
        """Everything that looks at `log_every` looks at `every`."""
        pl_module.config.logger.log_every = every
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Clock):
                callback.log_every = every
            if isinstance(callback, ConsoleProgress):
                callback.every = every

    def _bare(self, trainer: lightning.Trainer, pl_module: Any) -> float:
        """Seconds of as many steps in a plain loop, of the same model and optimizer."""
        data, optimizer = trainer.train_dataloader.dataset, trainer.optimizers[0]  # type: ignore[union-attr]
        started = time.perf_counter()
        for _ in range(self.block):
            ours.bare_step(pl_module, optimizer, data[self.bare_steps], precision=self.precision)
            self.bare_steps += 1
        return time.perf_counter() - started

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.validations.append(time.perf_counter() - self.started)
