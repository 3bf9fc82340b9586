"""What the callbacks share: the end of a step, and the cost of measuring beside training."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from switch_lm.measure.metrics import RoutingSums
from switch_lm.routers.routing import Routing


class MicroBatch(TypedDict):
    """What `training_step` returns. All but `loss`, on which Lightning calls backward, is without gradient."""

    loss: Tensor
    losses: dict[str, Tensor]  # by tag
    routings: tuple[Routing, ...]  # of each Switch layer, in this process
    sums: tuple[RoutingSums, ...]  # of all processes; empty where there is one


def step_ends(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of its step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StepCallback(Callback):
    """A callback that is called after whole steps, however many micro-batches they have.

    A callback may also have `figures()`: its own entries of result.json.
    """

    _done: tuple[MicroBatch, ...] = ()  # of the step under way

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done = (*self._done, outputs)
        if step_ends(trainer, batch_idx):
            micro_batches, self._done = self._done, ()
            self.after_step(pl_module, trainer.global_step, micro_batches)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        """`step`: how many are done, from 1 on."""


class Measurement(StepCallback):
    """Measures something beside training and does not change it. Its seconds are kept across restarts."""

    name: str  # of `NAME_seconds` in result.json
    seconds = 0.0

    @contextmanager
    def timed(self, module: Any) -> Iterator[None]:
        """Adds the seconds of its block."""
        if module.trainer.validating:
            module.stop_if_asked()
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def figures(self) -> dict[str, Any]:
        return {f"{self.name}_seconds": self.seconds}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
