"""A soft stop: a signal or a time limit ends training after a step, with everything saved."""

import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint

from switch_lm.config.schema import TrainerConfig
from switch_lm.training.callbacks.base import step_ends
from switch_lm.training.signals import StopSignals


class SoftStop(Checkpoint):
    """Saves `last.ckpt` and raises `Stopped` at the end of the step in which a signal came or the time ran out.

    A step with a validation ends after it. Lightning calls a `Checkpoint` after all other callbacks, so what they save
    and count is complete.
    """

    def __init__(self, last: Path, config: TrainerConfig, signals: StopSignals) -> None:
        self.last, self.config, self.signals = last, config, signals
        self.deadline = time.monotonic() + config.max_seconds()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.config.validates(step):  # which comes first
            return
        if step_ends(trainer, batch_idx) and self._is_due():
            trainer.save_checkpoint(self.last)
            raise self.signals.stopped(self._all_up_to(step))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if 0 < step < self.config.max_steps and self._is_due():  # the validation has saved last.ckpt
            raise self.signals.stopped(self._all_up_to(step))

    def _all_up_to(self, step: int) -> str:
        return f"everything up to step {step} of {self.config.max_steps} is saved"

    def _is_due(self) -> bool:
        return self.signals.received is not None or time.monotonic() >= self.deadline
