"""Learning rate schedules: step -> factor of the configured learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def cosine(*, warmup_steps: int, max_steps: int, min_factor: float) -> Schedule:
    """A linear rise to 1, then half a cosine to `min_factor` at the last step."""

    def factor(step: int) -> float:
        done = _progress(step, warmup_steps, max_steps)
        return _rise(step, warmup_steps) * (min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * done)))

    return factor


def linear(*, warmup_steps: int, max_steps: int, min_factor: float) -> Schedule:
    """A linear rise to 1, then a straight line to `min_factor` at the last step."""

    def factor(step: int) -> float:
        done = _progress(step, warmup_steps, max_steps)
        return _rise(step, warmup_steps) * (1 + (min_factor - 1) * done)

    return factor


def noam(*, warmup_steps: int, d_model: int) -> Schedule:
    """d_model^-0.5 x min(step^-0.5, step x warmup^-1.5), steps from 1 (Vaswani et al., 2017, eq. 3)."""

    def factor(step: int) -> float:
        number = step + 1
        return float(d_model**-0.5 * min(number**-0.5, number * max(1, warmup_steps) ** -1.5))

    return factor


def _rise(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _progress(step: int, warmup_steps: int, max_steps: int) -> float:
    return min(1.0, max(0.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps)))
