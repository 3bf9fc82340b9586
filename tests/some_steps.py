"""Something done at the start and at the end of each micro-batch of a run, and a run that ends after some steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from switch_lm.config.schema import Config
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

Act = Callable[[SwitchModule], None]


class EnoughSteps(BaseException):
    """Nothing in the program catches it."""


def around_each_micro_batch(patch: pytest.MonkeyPatch, *, start: Act, end: Act) -> None:
    """`start` is called after all else that begins a micro-batch, and `end` after all else that ends it."""

    def after(name: str, act: Act) -> None:
        real = getattr(SwitchModule, name)

        def both(self: SwitchModule, *given: Any) -> None:
            real(self, *given)
            act(self)

        patch.setattr(SwitchModule, name, both)

    after("on_train_batch_start", start)
    after("on_train_batch_end", end)


def nothing(module: SwitchModule) -> None:
    pass


def train_steps(config: Config, steps: int, *, start: Act = nothing, end: Act = nothing) -> None:
    """Trains so many steps, and ends right after what follows the last one, such as a checkpoint."""

    def end_or_stop(module: SwitchModule) -> None:
        end(module)
        if module.global_step == steps:
            raise EnoughSteps

    with pytest.MonkeyPatch.context() as patch:
        around_each_micro_batch(patch, start=start, end=end_or_stop)
        with pytest.raises(EnoughSteps):
            train(config)
