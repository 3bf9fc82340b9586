"""How often the interval of a ratio of shares holds, and how often a class at its threshold is named on a card."""

from __future__ import annotations

import math

import pytest
import torch
from calibration_table import REPEATS, calibrated

from switch_lm.stats.intervals import Estimate
from switch_lm.stats.shares import TIMES, log_ratio

pytestmark = pytest.mark.long
WINDOWS, CHARACTERS, PAIRS, SHARE = 128, 128, 16, 0.2  # pairs of an expert and a class; of the text, the expert's


def one(draw: torch.Generator, in_text: float) -> Estimate:
    """The class is exactly `TIMES` times as common at the expert; windows differ in both by a factor of 1/2 to 3/2."""
    of_class, of_expert = (0.5 + torch.rand(WINDOWS, generator=draw) for _ in range(2))
    inside = TIMES * SHARE
    outside = SHARE * (1.0 - TIMES * in_text) / (1.0 - in_text)
    class_B = torch.binomial(torch.full((WINDOWS,), float(CHARACTERS)), in_text * of_class, generator=draw)
    both_B = torch.binomial(class_B, inside * of_expert, generator=draw)
    expert_B = both_B + torch.binomial(CHARACTERS - class_B, outside * of_expert, generator=draw)
    return log_ratio(both_B, expert_B, class_B, torch.full((WINDOWS,), CHARACTERS))


@pytest.mark.parametrize(("in_text", "words"), [(0.1, "one character in 10"), (0.003, "one character in 333")])
def test_a_class_at_the_threshold(in_text: float, words: str) -> None:
    draw, holds, named = torch.Generator().manual_seed(0), [], []
    for _ in range(REPEATS):
        family = [one(draw, in_text) for _ in range(PAIRS)]
        low, high = family[0].interval() or (-math.inf, math.inf)
        holds.append(low <= math.log(TIMES) <= high)
        ends = (estimate.interval(PAIRS) for estimate in family)
        named.append(any(end is not None and math.exp(end[0]) > TIMES for end in ends))
    calibrated(
        "ratio of a class's shares; any of 16 named",
        f"128 windows that differ in both, {TIMES:g} times as common, {words}",
        covers=holds,
        false=named,
    )
