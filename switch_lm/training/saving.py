"""When training writes `last.ckpt`, and when it ends early with everything saved."""

import time
from pathlib import Path

import lightning

from switch_lm.config.schema import TrainerConfig
from switch_lm.storage.runs import LAST
from switch_lm.training.signals import StopSignals

SECONDS_BETWEEN = 60.0  # two writes in a long validation


class Saving:
    """Saves `last.ckpt` every `checkpoint_every` steps, and before and after each validation.

    After the step or the batch of a validation in which a signal came or the time ran out, it saves and raises
    `Stopped`: a run that is resumed from there continues in the middle of the validation.

    The module calls it from its own hooks, which Lightning runs after those of all callbacks, whatever their order: so
    what callbacks count and the validation's rank among the best are in the file.
    """

    def __init__(self, checkpoints: Path, config: TrainerConfig, signals: StopSignals) -> None:
        self.last, self.config, self.signals = checkpoints / LAST, config, signals
        self.deadline = time.monotonic() + config.max_seconds()
        self.saved_at = time.monotonic()

    def after_step(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        self._save(trainer, step % self.config.checkpoint_every == 0 or self.config.validates(step))

    def in_validation(self, trainer: lightning.Trainer) -> None:
        """After a batch."""
        self._save(trainer, time.monotonic() - self.saved_at > SECONDS_BETWEEN)

    def after_validation(self, trainer: lightning.Trainer) -> None:
        self._save(trainer, True)

    def _save(self, trainer: lightning.Trainer, due: bool) -> None:
        stops = self.signals.received is not None or time.monotonic() >= self.deadline
        if due or stops:
            trainer.save_checkpoint(self.last)
            self.saved_at = time.monotonic()
        if stops:
            done = f"step {trainer.global_step} of {self.config.max_steps}"
            raise self.signals.stopped(f"everything up to {done} is saved")
