"""When training writes `last.ckpt`, and when it ends early with everything saved."""

import time
from pathlib import Path

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from switch_lm.config.schema import TrainerConfig
from switch_lm.storage.runs import LAST
from switch_lm.training.signals import StopSignals


class Saving:
    """Saves `last.ckpt` every `checkpoint_every` steps and after each validation; the last step is always validated.

    In the step in which a signal came or the time ran out, it saves and raises `Stopped`; after the validation, if the
    step has one. It does not save before a validation, which a run that continues from there would skip.

    The module calls it from its own hooks, which Lightning runs after those of all callbacks, whatever their order: so
    what callbacks count and the validation's rank among the best are in the file.
    """

    def __init__(self, checkpoints: Path, config: TrainerConfig, signals: StopSignals) -> None:
        self.last, self.config, self.signals = checkpoints / LAST, config, signals
        self.deadline = time.monotonic() + config.max_seconds()

    def after_step(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        if self.config.validates(step):  # which comes first
            return
        stops = self._is_due()
        if stops or step % self.config.checkpoint_every == 0:
            trainer.save_checkpoint(self.last)
        if stops:
            raise self.signals.stopped(self._all_up_to(step))

    def after_validation(self, trainer: lightning.Trainer) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # before the first step, where there is no optimizer yet
            return
        trainer.save_checkpoint(self.last)
        step = trainer.global_step
        if step < self.config.max_steps and self._is_due():
            raise self.signals.stopped(self._all_up_to(step))

    def _all_up_to(self, step: int) -> str:
        return f"everything up to step {step} of {self.config.max_steps} is saved"

    def _is_due(self) -> bool:
        return self.signals.received is not None or time.monotonic() >= self.deadline
