"""Effective speed-up: planted curves, and what is not said beyond them."""

from __future__ import annotations

import math

import pytest

from switch_lm.stats.intervals import estimate
from switch_lm.stats.speed_up import Curve, SpeedUp, speed_up

SLOPE, OF_SEED = 0.25, (0.03, -0.01, 0.02, -0.04)


def planted(seconds: float, added: tuple[float, ...] = (0.0,) * 4) -> dict[int, float]:
    """A straight line in the logarithm of time, moved by the effect of each seed."""
    return {n: 2.0 - SLOPE * math.log(seconds) + OF_SEED[n] + added[n] for n in range(4)}


CURVE = {seconds: planted(seconds) for seconds in (50.0, 70.0, 100.0, 140.0, 200.0)}


@pytest.mark.parametrize("own", [100.0, 80.0])
def test_a_planted_ratio_is_found_at_and_between_the_lengths(own: float) -> None:
    for seconds in (55.0, 70.0, 100.0, 130.0, 190.0):
        result = speed_up(CURVE, planted(seconds), own)
        assert result.ratio == pytest.approx(seconds / own) and result.reach == pytest.approx((50.0 / own, 200.0 / own))
        assert result.interval is None  # what the seeds have in common cancels: nothing varies


def test_the_interval_is_students_of_what_the_seeds_add_to_one_side() -> None:
    added = (0.01, -0.02, 0.004, 0.0)
    expected = estimate([math.log(1.2) - x / SLOPE for x in added])
    assert expected and (low_high := expected.interval())
    found = speed_up(CURVE, planted(120.0, added), 100.0).interval
    assert found == pytest.approx(tuple(map(math.exp, low_high)))


def test_nothing_is_said_beyond_the_curve() -> None:
    found = [speed_up(CURVE, planted(seconds), 100.0) for seconds in (201.0, 49.0)]
    assert [(one.ratio, one.interval, str(one)) for one in found] == [
        (None, None, s) for s in ("over 2.00", "under 0.50")
    ]
    near = speed_up(CURVE, planted(199.0, (-0.02, 0.0, 0.0, 0.02)), 100.0)  # without seed 3 it is beyond the end
    assert near.ratio == pytest.approx(1.99) and near.interval is None
    ends = {(1.1, 1.5): "1.10 to 1.50", (0.4, 1.5): "under 0.50 to 1.50", (1.1, 2.6): "1.10 to over 2.00"}
    assert [str(SpeedUp(1.2, (0.5, 2.0), one)) for one in ends] == [f"1.20 ({text})" for text in ends.values()]
    for curve, own in ((CURVE, {9: 2.0}), ({100.0: planted(100.0)}, planted(100.0))):
        with pytest.raises(ValueError, match="give two lengths and one seed or more"):
            speed_up(curve, own, 100.0)


def test_a_lower_loss_never_takes_the_reference_less_time_even_where_its_mean_rises_by_chance() -> None:
    curve = Curve.of({50.0: 2.17, 70.0: 2.21, 100.0: 2.0, 140.0: 2.01, 200.0: 1.83})
    logs = [curve.log_seconds_to(2.19 - 1e-9 - n / 1000) for n in range(360)]  # the first two: 2.19 together
    assert logs == sorted(logs) and logs[-1] < math.log(200.0)
