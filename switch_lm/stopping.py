"""A soft stop: a signal or a time limit ends training at the border of a step, with everything saved."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint

from switch_lm.callbacks import step_ends
from switch_lm.run_folder import Stopped
from switch_lm.settings import TrainerConfig

# kill and a cluster's scheduler, Ctrl-C, and what SLURM can be asked for before its time limit (--signal=USR1@60).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
IN_TIME = 0  # the exit code of trainer.max_time: what was asked for


class SoftStop(Checkpoint):
    """Saves `last.ckpt` and raises `Stopped` at the next border of a step after a signal, or once the time is up.

    A second signal raises at once. A step that is validated ends after its validation. As a `Checkpoint` it is called
    after the other callbacks, so that what they save and count is complete.
    """

    def __init__(self, last: Path, config: TrainerConfig) -> None:
        self.last, self.config = last, config
        self.deadline = time.monotonic() + config.max_seconds()
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.config.validates(step):  # which comes first
            return
        if step_ends(trainer, batch_idx) and self._is_due():
            trainer.save_checkpoint(self.last)
            raise self._stopped(self._all_up_to(step))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if 0 < step < self.config.max_steps and self._is_due():  # the validation has saved last.ckpt
            raise self._stopped(self._all_up_to(step))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        """Before Lightning restores what it found: after that, in `teardown`, this would keep its handlers for ever."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _all_up_to(self, step: int) -> str:
        return f"everything up to step {step} of {self.config.max_steps} is saved"

    def _is_due(self) -> bool:
        return self.received is not None or time.monotonic() >= self.deadline

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number)
        if again:
            raise self._stopped("what its last checkpoint holds is saved")

    def _stopped(self, saved: str) -> Stopped:
        run, what = self.last.parents[1], self.received
        by, code = ("at trainer.max_time", IN_TIME) if what is None else (f"by {what.name}", 128 + what)
        return Stopped(f"Stopped {by}: {saved} in {run}", run=run.name, code=code)
