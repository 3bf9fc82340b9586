"""How often the interval of what a label explains beyond chance holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from calibration_table import REPEATS, calibrated
from torch import Tensor

from switch_lm.stats.information import Explained, explained

pytestmark = pytest.mark.long
WINDOWS, CHARACTERS, EXPERTS, LABELS = 32, 32, 4, 8


def in_runs(draw: torch.Generator, high: int) -> Tensor:
    """Values that stay for 1 to 9 characters."""
    value_N = torch.randint(high, (WINDOWS * CHARACTERS,), generator=draw)
    return value_N.repeat_interleave(torch.randint(1, 10, value_N.shape, generator=draw))[: len(value_N)].view(
        WINDOWS, CHARACTERS
    )


def at_random(draw: torch.Generator, high: int) -> Tensor:
    return torch.randint(high, (WINDOWS, CHARACTERS), generator=draw)


def followed(draw: torch.Generator, label_BS: Tensor) -> Tensor:
    """Expert `label % EXPERTS` for half of the characters on average, a window between 20 and 80 %; else any."""
    follows_B1 = 0.2 + 0.6 * torch.rand(WINDOWS, 1, generator=draw)
    follows_BS = torch.rand(WINDOWS, CHARACTERS, generator=draw) < follows_B1
    return torch.where(follows_BS, label_BS % EXPERTS, at_random(draw, EXPERTS))


def share() -> float:
    """Of what is explained by then: the expert of the label has 1/2 + 1/8 of its characters, each other one 1/8."""
    own, other = 0.5 + 0.5 / EXPERTS, 0.5 / EXPERTS
    return 1.0 + (own * math.log(own) + (EXPERTS - 1) * other * math.log(other)) / math.log(EXPERTS)


def one(choice_BS: Tensor, label_BS: Tensor, given_BS: Tensor | None = None) -> Explained:
    return explained(choice_BS, label_BS, label="it", given_BS=given_BS, shifts=10)


def holds(result: Explained) -> bool:
    interval = result.beyond.interval()
    assert interval is not None
    return interval[0] <= share() <= interval[1]


@pytest.mark.parametrize(("kind", "drawn"), [("drawn one by one", at_random), ("in runs of 1 to 9", in_runs)])
def test_what_a_label_explains_beyond_chance(kind: str, drawn: Callable[[torch.Generator, int], Tensor]) -> None:
    draw = torch.Generator().manual_seed(0)
    planted = [one(followed(draw, label_BS), label_BS) for label_BS in (drawn(draw, LABELS) for _ in range(REPEATS))]
    null = [one(drawn(draw, EXPERTS), drawn(draw, LABELS)) for _ in range(REPEATS)]
    calibrated(
        "share of the choice that a label explains, less chance",
        f"{WINDOWS} windows that follow it by 20 to 80 %, labels {kind}",
        covers=[holds(result) for result in planted],
        false=[result.beyond.resolved() for result in null],
    )


def test_what_a_label_explains_beyond_another() -> None:
    """Planted: the label alone decides. Null: it goes with the character, which alone decides."""
    draw = torch.Generator().manual_seed(1)
    planted, null = [], []
    for _ in range(REPEATS):
        character_BS, label_BS = at_random(draw, 6), at_random(draw, LABELS)
        planted.append(one(followed(draw, label_BS), label_BS, character_BS))
        follower_BS = (character_BS + at_random(draw, 3)) % LABELS
        null.append(one(followed(draw, character_BS), follower_BS, character_BS))
    calibrated(
        "the same, beyond the character",
        f"{WINDOWS} windows that follow the label, or the character, by 20 to 80 %",
        covers=[holds(result) for result in planted],
        false=[result.beyond.resolved() for result in null],
    )
