"""Seconds of the run and of its training steps alone, kept across restarts."""

import time
from collections.abc import Sequence
from typing import Any

import lightning
import torch

from switch_lm.config.schema import Config
from switch_lm.training.callbacks.base import MicroBatch, StepCallback

Moment = float | torch.cuda.Event


class Clock(StepCallback):
    """Adds up the seconds from a step's first micro-batch until its optimizer has moved the weights.

    The optimizer itself says when: by `on_train_batch_end` other callbacks may have taken their time. A GPU is still at
    work then: it notes the times itself, and they are read where something else waits for it too.
    """

    def __init__(self, config: Config) -> None:
        self.log_every = config.logger.log_every
        self.tokens_per_step = config.trainer.accumulate * config.data.batch_size * config.model.context_length
        self.total_seconds = self.step_seconds = 0.0
        self.steps = 0
        self._before = (0, 0.0)  # steps of earlier starts of the run, and their seconds
        self._started = time.perf_counter()
        self._step_started: Moment = 0.0
        self._step_ended: Moment = 0.0
        self._unread: list[tuple[Moment, Moment]] = []  # steps
        self._unlogged: list[float] = []  # seconds of each step since the last point

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        optimizer.register_step_post_hook(lambda *_: self._note_end(pl_module.device))

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_started = _now(pl_module.device)

    def _note_end(self, device: torch.device) -> None:
        self._step_ended = _now(device)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        self.steps += 1
        self._unread.append((self._step_started, self._step_ended))
        if step % self.log_every == 0:
            self._read()
            speed = len(self._unlogged) * self.tokens_per_step / sum(self._unlogged)
            module.run_log.scalars({"perf/tokens_per_second": speed}, step)
            self._unlogged.clear()

    def _read(self) -> None:
        seconds = [_between(started, ended) for started, ended in self._unread]
        self._unread.clear()
        self._unlogged += seconds
        for one in seconds:
            self.step_seconds += one

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._read()
        pl_module.run_log.scalars({"perf/training_seconds": self.step_seconds}, trainer.global_step)

    def figures(self) -> dict[str, Any]:
        """Seconds since the start, those of training steps alone, and training tokens per second of these."""
        self._read()
        speed = self.steps * self.tokens_per_step / self.step_seconds if self.step_seconds else 0.0
        return {"seconds": self._seconds(), "training_seconds": self.step_seconds, "tokens_per_second": speed}

    def of_this_start(self) -> tuple[int, float]:
        """Steps since the run was started or resumed, and their seconds."""
        self._read()
        return self.steps - self._before[0], self.step_seconds - self._before[1]

    def _seconds(self) -> float:
        return self.total_seconds + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {"total_seconds": self._seconds(), "step_seconds": self.step_seconds, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_seconds, self.step_seconds = state_dict["total_seconds"], state_dict["step_seconds"]
        self.steps = state_dict["steps"]
        self._before = (self.steps, self.step_seconds)


def _now(device: torch.device) -> Moment:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(started: Moment, ended: Moment) -> float:
    """Seconds; waits for the GPU."""
    if isinstance(started, float) or isinstance(ended, float):
        assert isinstance(started, float) and isinstance(ended, float)
        return ended - started
    ended.synchronize()
    return started.elapsed_time(ended) / 1000
