"""Differences between variants: simulated sweeps with the published one's spread and a common effect of each seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from calibration_table import REPEATS, calibrated

from switch_lm.stats.contrasts import Pool
from switch_lm.stats.corrections import holm

pytestmark = pytest.mark.long
SPREAD, OF_SEEDS = 0.0117, 0.02  # nats: residual deviation of the published sweep, and of the seeds' effects
EFFECT = 0.03  # nats, of the second variant against the control; the others are alike
Runs = dict[str, dict[int, float]]
Pairs = list[tuple[str, str]]


def sweep(draw: np.random.Generator, *, seeds: int, spreads: list[float], effect: float = EFFECT) -> Runs:
    common = OF_SEEDS * draw.normal(size=seeds)
    noise = SPREAD * np.array(spreads)[:, None] * draw.normal(size=(len(spreads), seeds))
    noise[1] += effect
    return {f"v{number}": dict(enumerate((1.9 + common + own).tolist())) for number, own in enumerate(noise)}


def with_failures(draw: np.random.Generator) -> Runs:
    """Two of 35 runs have failed."""
    values = sweep(draw, seeds=5, spreads=[1.0] * 7)
    for variant in draw.choice(7, size=2, replace=False):
        del values[f"v{variant}"][int(draw.integers(5))]
    return values


def wide_with_failures(draw: np.random.Generator) -> Runs:
    """A variant of three times the spread, of which a run has failed, as one of another variant has."""
    values = sweep(draw, seeds=5, spreads=[1.0] * 6 + [3.0])
    for variant in ("v6", "v3"):
        del values[variant][int(draw.integers(5))]
    return values


def apart(draw: np.random.Generator) -> Runs:
    """Each variant with seeds of its own, and spreads of 1 : 3."""
    runs = {name: sweep(draw, seeds=5, spreads=[1.0, 3.0, 1.0, 3.0])[name] for name in ("v0", "v1", "v2", "v3")}
    return {name: {5 * n + seed: y for seed, y in own.items()} for n, (name, own) in enumerate(runs.items())}


SWEEPS: dict[str, Callable[[np.random.Generator], Runs]] = {
    "6 variants, 3 seeds": lambda draw: sweep(draw, seeds=3, spreads=[1.0] * 6),
    "7 variants, 5 seeds": lambda draw: sweep(draw, seeds=5, spreads=[1.0] * 7),
    "the same, two runs failed": with_failures,
    "7 variants, 5 seeds, one of 3 times the spread": lambda draw: sweep(draw, seeds=5, spreads=[1.0] * 6 + [3.0]),
    "the same, a run of it and of another one failed": wide_with_failures,
    "the same, the control of 3 times the spread": lambda draw: sweep(draw, seeds=5, spreads=[3.0] + [1.0] * 6),
    "the same, every other one of 3 times the spread": lambda draw: sweep(draw, seeds=5, spreads=[1, 3, 1, 3, 1, 3, 1]),
}


def simulated(make: Callable[[np.random.Generator], Runs]) -> tuple[list[bool], list[bool], list[bool]]:
    """Whether single intervals hold the truth, whether a family resolves a null, and whether it finds the effect."""
    draw, covers, false, power = np.random.default_rng(0), list[bool](), list[bool](), list[bool]()
    for _ in range(REPEATS):
        values = make(draw)
        names = list(values)
        family = Pool(values).family([(name, names[0]) for name in names[1:]])
        for number, compared in enumerate(family):
            interval, truth = compared.estimate.interval(), EFFECT if number == 0 else 0.0
            assert interval is not None
            covers.append(interval[0] <= truth <= interval[1])
        false.append(any(compared.resolved for compared in family[1:]))
        power.append(family[0].resolved)
    return covers, false, power


@pytest.mark.parametrize("data", SWEEPS)
def test_each_variant_against_the_control(data: str) -> None:
    covers, false, _ = simulated(SWEEPS[data])
    calibrated("variants against a control", data, covers=covers, false=false)


@pytest.mark.parametrize(
    ("seeds", "effect", "found"), [(3, 0.03, 0.86), (3, 0.02, 0.48), (5, 0.03, 0.94), (5, 0.02, 0.65)]
)
def test_the_effect_is_resolved_as_often_as_the_page_says(seeds: int, effect: float, found: float) -> None:
    """A spread of 0.0084 nats, that of the sweep published before; a t interval for each pair finds 63% of 0.03."""
    _, _, power = simulated(lambda draw: sweep(draw, seeds=seeds, spreads=[0.0084 / SPREAD] * 6, effect=effect))
    assert np.mean(power) >= found


def test_variants_without_common_seeds() -> None:
    covers, false, _ = simulated(apart)
    calibrated(
        "the same by Welch", "4 variants, 5 seeds each of their own, spreads of 1 : 3", covers=covers, false=false
    )


def test_the_steps_of_a_ladder() -> None:
    draw, covers, false = np.random.default_rng(1), list[bool](), list[bool]()
    for _ in range(REPEATS):
        pool = Pool(sweep(draw, seeds=5, spreads=[1.0] * 7))
        steps = [pool.difference((f"v{rung + 1}", f"v{rung}")) for rung in range(6)]
        truth = [EFFECT, -EFFECT, 0.0, 0.0, 0.0, 0.0]
        intervals = [step.interval() for step in steps]
        covers += [low <= true <= high for (low, high), true in zip(filter(None, intervals), truth, strict=True)]
        false.append(any(compared.resolved for compared in holm(steps)[2:]))
    calibrated("steps of a ladder, Holm", "7 variants, 5 seeds", covers=covers, false=false)
