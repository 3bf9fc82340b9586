"""How often the intervals of `check` and `evaluate` hold: on batches that share an effect, and on heavy tails."""

from __future__ import annotations

import math

import pytest
import torch
from calibration_table import REPEATS, calibrated
from torch import Tensor

from switch_lm.certificate.gaps import gap
from switch_lm.stats.intervals import Estimate, estimate

pytestmark = pytest.mark.long
EFFECT = 0.01  # nats per character
RULES = 20


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(normal: Tensor, sigma: float) -> Tensor:
    """Lognormal, less its mean."""
    return (sigma * normal).exp() - math.exp(sigma**2 / 2)


def in_batches(repeats: int, seed: int, *, batches: int = 8, rows: int = 32, length: int = 8) -> Tensor:
    """Differences whose mean is 0 (repeats, B, S): what a batch drops has an effect (skewness 0.8) on all its rows."""
    batch = 0.08 * skewed(normal(repeats, batches, 1, 1, seed=seed), 0.25)
    window = 0.02 * normal(repeats, batches, rows, 1, seed=seed + 1)
    character = 0.1 * normal(repeats, batches, rows, length, seed=seed + 2)
    return (batch + window + character).flatten(1, 2)


def heavy_tailed(repeats: int, seed: int, *, windows: int = 64, length: int = 64) -> Tensor:
    """The same by window: one character in ten differs, with a long tail (skewness 6); windows have unequal spreads."""
    long_tailed = skewed(normal(repeats, windows, length, seed=seed + 1), 1.0)
    differs = normal(repeats, windows, length, seed=seed + 2) > 1.28
    spread = (0.5 * normal(repeats, windows, 1, seed=seed + 3)).exp()
    return 0.5 * spread * (long_tailed * differs + 0.1 * normal(repeats, windows, 1, seed=seed + 4))


def holds(one: Estimate, truth: float) -> bool:
    interval = one.interval()
    return interval is not None and interval[0] <= truth <= interval[1]


def gaps(difference_RBS: Tensor, *, rows: int) -> list[Estimate]:
    nothing_BS = torch.zeros_like(difference_RBS[0])
    return [gap(difference_BS, nothing_BS, rows=rows) for difference_BS in difference_RBS]


@pytest.mark.parametrize("batches", [8, 16])
def test_gaps_of_rules_whose_rows_share_places(batches: int) -> None:
    difference_RBS = in_batches(REPEATS, 100 + batches, batches=batches)
    calibrated(
        "`check`, gap over batches",
        f"{batches} batches of 32 windows, which share a skewed effect",
        covers=[holds(one, EFFECT) for one in gaps(difference_RBS + EFFECT, rows=32)],
        false=[one.resolved() for one in gaps(difference_RBS, rows=32)],
    )


@pytest.mark.parametrize("windows", [8, 64])
def test_gaps_over_windows(windows: int) -> None:
    parts = [heavy_tailed(REPEATS // 4, 10 * windows + 1000 * part, windows=windows) for part in range(4)]
    difference_RBS = torch.cat(parts)
    calibrated(
        "`check`, gap over windows",
        f"{windows} windows of unequal spreads; one character in ten differs, with heavy tails",
        covers=[holds(one, EFFECT) for one in gaps(difference_RBS + EFFECT, rows=1)],
        false=[one.resolved() for one in gaps(difference_RBS, rows=1)],
    )


def test_effects_in_the_table_of_all_policies() -> None:
    """None of the rules has an effect; they are alike, since all read the same text."""
    common_RBS = in_batches(REPEATS, 1, rows=4, length=2)
    marked_R = torch.zeros(REPEATS, dtype=torch.bool)
    for rule in range(RULES):
        difference_RBS = common_RBS + in_batches(REPEATS, 10 + 3 * rule, rows=4, length=2)
        marked_R |= torch.tensor([one.resolved(RULES) for one in gaps(difference_RBS, rows=4)])
    calibrated(
        "`check --all-policies`, any effect of the table",
        f"{RULES} rules without an effect, on one text of 8 batches",
        false=marked_R.tolist(),
    )


def test_nanogpts_estimate() -> None:
    """Ten draws of 20 batches of 12 windows, whose losses are skewed."""
    loss_RND = 1.5 + 0.2 * skewed(normal(REPEATS, 10, 20 * 12, seed=7), 0.5)
    drawn = [estimate(draws) for draws in loss_RND.mean(dim=-1).tolist()]
    calibrated(
        "`evaluate`, nanoGPT's estimate",
        "10 draws of 240 windows with skewed losses",
        covers=[one is not None and holds(one, 1.5) for one in drawn],
    )
