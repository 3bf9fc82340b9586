"""How often the interval of a ratio of times holds, where seeds share an effect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from calibration_table import REPEATS, calibrated

from switch_lm.reporting.records import Point
from switch_lm.reporting.times import TimeRatio, time_ratio

pytestmark = pytest.mark.long

SEEDS, STEPS, SLOWER, END = 5, (50, 100, 150, 200, 250), 1.5, 1.925
DEVIATION = 0.004  # nats: of a seed's effect, and of a run's own
SPEED = 0.08  # the deviation of the logarithm of a step's time


def simulated(random: np.random.Generator, *, slower: float = 1.0) -> TimeRatio:
    """Two variants of equal loss by step; a step of the first takes `slower` times as long."""
    common_S = random.normal(0.0, DEVIATION, SEEDS)
    sides = []
    for factor in (slower, 1.0):
        level_S = END + common_S + random.normal(0.0, DEVIATION, SEEDS)
        second_S = 0.1 * factor * np.exp(random.normal(0.0, SPEED, SEEDS))
        sides.append({
            seed: [Point(step, level_S[seed] + 0.6 * (1 - step / STEPS[-1]), second_S[seed] * step) for step in STEPS]
            for seed in range(SEEDS)
        })  # fmt: skip
    result = time_ratio(*sides)
    assert result is not None
    return result


def test_the_interval_of_a_ratio_of_times_holds() -> None:
    random, covers, false = np.random.default_rng(0), [], []
    for _ in range(REPEATS):
        planted, null = simulated(random, slower=SLOWER), simulated(random)
        low, high = planted.estimate.interval() or (0.0, 0.0)
        covers.append(planted.ours_missed + planted.theirs_missed == 0 and low <= math.log(SLOWER) <= high)
        false.append(null.estimate.resolved())
    calibrated("ratio of times", "5 seeds with a common effect, 1.5 times as long", covers=covers, false=false)
