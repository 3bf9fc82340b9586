"""Effective speed-up: planted curves, and what is not said beyond them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from switch_lm.stats.intervals import estimate
from switch_lm.stats.speed_up import Curve, SpeedUp, speed_up

LENGTHS, SLOPE = (50.0, 70.0, 100.0, 140.0, 200.0), 0.25
OF_SEED = {0: 0.03, 1: -0.01, 2: 0.02, 3: -0.04}


def planted(seconds: float) -> float:
    return 2.0 - SLOPE * math.log(seconds / 100.0)


def curve() -> dict[float, dict[int, float]]:
    """A straight line in the logarithm of time, moved by the effect of each seed."""
    return {seconds: {seed: planted(seconds) + e for seed, e in OF_SEED.items()} for seconds in LENGTHS}


@pytest.mark.parametrize("ratio", [0.55, 0.7, 1.0, 1.3, 1.9])
@pytest.mark.parametrize("own_seconds", [100.0, 80.0])
def test_a_planted_ratio_is_found_at_and_between_the_lengths(ratio: float, own_seconds: float) -> None:
    own = {seed: planted(ratio * 100.0) + e for seed, e in OF_SEED.items()}
    result = speed_up(curve(), own, own_seconds)
    assert result.ratio == pytest.approx(ratio * 100.0 / own_seconds)
    assert result.reach == pytest.approx((50.0 / own_seconds, 200.0 / own_seconds))
    assert result.interval is None  # what the seeds have in common cancels: nothing varies


def test_the_interval_is_students_of_what_the_seeds_add_to_one_side() -> None:
    added = {0: 0.01, 1: -0.02, 2: 0.004, 3: 0.0}
    result = speed_up(curve(), {seed: planted(120.0) + OF_SEED[seed] + x for seed, x in added.items()}, 100.0)
    expected = estimate([math.log(1.2) - x / SLOPE for x in added.values()])
    ends = expected and expected.interval()
    assert ends is not None and result.interval == pytest.approx(tuple(map(math.exp, ends)))


def test_nothing_is_said_beyond_the_curve() -> None:
    better, worse = ({seed: planted(s) + e for seed, e in OF_SEED.items()} for s in (201.0, 49.0))
    results = [speed_up(curve(), own, 100.0) for own in (better, worse)]
    assert [(one.ratio, one.interval, one.faster) for one in results] == [(None, None, True), (None, None, False)]
    assert list(map(str, results)) == ["over 2.00", "under 0.50"]
    close = {seed: planted(199.0) + e + 0.01 * (seed - 1.5) for seed, e in OF_SEED.items()}
    near = speed_up(curve(), close, 100.0)  # without seed 3 it is beyond the end
    assert near.ratio == pytest.approx(1.99) and near.interval is None


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((1.1, 1.5), "1.20 (1.10 to 1.50)"),
        ((0.4, 1.5), "1.20 (under 0.50 to 1.50)"),
        ((1.1, 2.6), "1.20 (1.10 to over 2.00)"),
    ],
)
def test_an_interval_is_cut_off_where_the_curve_ends(interval: tuple[float, float], text: str) -> None:
    assert str(SpeedUp(1.2, (0.5, 2.0), interval)) == text


def test_a_lower_loss_never_takes_the_reference_less_time_even_where_its_mean_rises_by_chance() -> None:
    noisy = {50.0: 2.17, 70.0: 2.21, 100.0: 2.0, 140.0: 2.01, 200.0: 1.83}
    losses = np.linspace(2.19, 1.83, 200)  # 2.19: the mean of the first two, which are levelled
    logs = [Curve.of(noisy).log_seconds_to(min(loss, 2.19 - 1e-9)) for loss in losses]
    assert all(np.diff(logs) >= 0.0) and logs[-1] == pytest.approx(math.log(200.0))
    assert Curve.of({1.0: 1.0, math.e: 1.0}).log_seconds_to(1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("reference", "own"), [(curve(), {9: 2.0}), ({100.0: OF_SEED}, OF_SEED)], ids=["no common seed", "one length"]
)
def test_what_cannot_be_compared_is_refused(reference: dict[float, dict[int, float]], own: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="give two lengths and one seed or more"):
        speed_up(reference, own, 100.0)
