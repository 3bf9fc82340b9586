"""A run of some steps, with something done at the start and at the end of each micro-batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from switch_lm.config.schema import Config
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


class EnoughSteps(BaseException):
    """Nothing in the program catches it."""


def train_steps(
    config: Config,
    patch: pytest.MonkeyPatch,
    *,
    steps: int,
    start: Callable[[int], None],
    end: Callable[[], None] = lambda: None,
) -> None:
    """Trains so many steps, and ends before what follows the last one.

    `start` is called after all else that begins a micro-batch, with the number of steps done, and `end` after all else
    that ends one.
    """
    begin, finish = SwitchModule.on_train_batch_start, SwitchModule.on_train_batch_end

    def on_start(self: SwitchModule, batch: object, number: int) -> None:
        begin(self, batch, number)  # type: ignore[arg-type]
        start(self.global_step)

    def on_end(self: SwitchModule, outputs: object, batch: object, number: int) -> None:
        finish(self, outputs, batch, number)  # type: ignore[arg-type]
        end()
        if self.global_step == steps:
            raise EnoughSteps

    patch.setattr(SwitchModule, "on_train_batch_start", on_start)
    patch.setattr(SwitchModule, "on_train_batch_end", on_end)
    with pytest.raises(EnoughSteps):
        train(config)
