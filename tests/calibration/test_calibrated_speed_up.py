"""How often the interval of an effective speed-up holds: a curved reference of six lengths, seeds with common effects."""

from __future__ import annotations

import numpy as np
import pytest
from calibration_table import REPEATS, calibrated

from switch_lm.stats.speed_up import SpeedUp, speed_up

pytestmark = pytest.mark.long
SEEDS, LENGTHS, FASTER = 5, np.array((0.35, 0.5, 0.7, 1.0, 1.4, 2.0)), 1.25
SPREAD, OF_SEEDS = 0.0117, 0.02  # nats: of a run, and of the seeds' effects, as in the published sweep


def simulated(draw: np.random.Generator, *, ratio: float) -> SpeedUp:
    """Ours takes as long as the reference's run of length 1."""

    def losses(length: float) -> dict[int, float]:
        level = 1.3 + 0.45 / np.sqrt(length)
        return dict(enumerate((level + common_S + SPREAD * draw.normal(size=SEEDS)).tolist()))

    common_S = OF_SEEDS * draw.normal(size=SEEDS)
    return speed_up({length: losses(length) for length in LENGTHS.tolist()}, losses(ratio), 1.0)


def test_the_interval_of_an_effective_speed_up_holds() -> None:
    draw, covers, false = np.random.default_rng(0), list[bool](), list[bool]()
    for _ in range(REPEATS):
        low, high = simulated(draw, ratio=FASTER).interval or (0.0, 0.0)
        covers.append(low <= FASTER <= high)
        low, high = simulated(draw, ratio=1.0).interval or (0.0, 2.0)
        false.append(not low <= 1.0 <= high)
    calibrated(
        "effective speed-up",
        "5 seeds with a common effect, a reference of 6 lengths, 1.25 times",
        covers=covers,
        false=false,
    )
