"""When training writes `last.ckpt`, and when it ends early with everything saved."""

import signal
import time
from pathlib import Path

import lightning

from switch_lm.config.schema import TrainerConfig
from switch_lm.storage.runs import LAST
from switch_lm.training.parallel.group import Group
from switch_lm.training.signals import StopSignals

SECONDS_BETWEEN = 60.0  # two writes in a long validation
TIME_IS_UP = 1000  # why to stop, where that is no signal: above all of their numbers


class Saving:
    """Saves `last.ckpt` every `checkpoint_every` steps, and before and after each validation.

    After the step or the batch of a validation in which a signal came or the time ran out, it saves and raises
    `Stopped`: a run that is resumed from there continues in the middle of the validation.

    The module calls it from its own hooks, which Lightning runs after those of all callbacks, whatever their order: so
    what callbacks count and the validation's rank among the best are in the file.

    Of several processes the first one writes; all stop at the same step, or after the same batch of a validation.
    """

    def __init__(self, checkpoints: Path, config: TrainerConfig, signals: StopSignals, group: Group) -> None:
        self.last, self.config, self.signals, self.group = checkpoints / LAST, config, signals, group
        group.asks = self._asks
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

    def _asks(self) -> int:
        if self.signals.received is not None:
            return int(self.signals.received)
        return TIME_IS_UP if time.monotonic() >= self.deadline else 0

    def _save(self, trainer: lightning.Trainer, due: bool) -> None:
        self.group.check()
        stops = self.group.stops
        if (due or stops) and self.group.rank == 0:
            trainer.save_checkpoint(self.last)
            self.saved_at = time.monotonic()
        if stops:
            self.signals.received = None if stops == TIME_IS_UP else signal.Signals(stops)
            done = f"step {trainer.global_step} of {self.config.max_steps}"
            raise self.signals.stopped(f"everything up to {done} is saved")
