"""How often the interval of an effective speed-up holds: a curved reference, seeds with common effects."""

from __future__ import annotations

import numpy as np
import pytest
from calibration_table import REPEATS, calibrated

from switch_lm.stats.speed_up import speed_up

pytestmark = pytest.mark.long
LENGTHS, FASTER, SPREAD, OF_SEEDS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0), 1.25, 0.0117, 0.02  # nats, of the published sweep


def holds(draw: np.random.Generator, ratio: float) -> bool:
    """Ours takes as long as the reference's run of length 1."""
    common_S = OF_SEEDS * draw.normal(size=5)
    losses = [1.3 + 0.45 / length**0.5 + common_S + SPREAD * draw.normal(size=5) for length in (*LENGTHS, ratio)]
    *curve, own = (dict(enumerate(loss_S.tolist())) for loss_S in losses)
    low, high = speed_up(dict(zip(LENGTHS, curve, strict=True)), own, 1.0).interval or (0.0, 0.0)
    return low <= ratio <= high


def test_the_interval_of_an_effective_speed_up_holds() -> None:
    draw = np.random.default_rng(0)
    covers, null = ([holds(draw, ratio) for _ in range(REPEATS)] for ratio in (FASTER, 1.0))
    data = "5 seeds with a common effect, a reference of 6 lengths, 1.25 times"
    calibrated("effective speed-up", data, covers=covers, false=[not held for held in null])
