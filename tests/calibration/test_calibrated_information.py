"""How often the interval of what a label explains beyond chance holds."""

from __future__ import annotations

import math

import pytest
import torch
from calibration_table import REPEATS, calibrated
from torch import Tensor

from switch_lm.stats.clusters import LEAST
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
    """Expert `label % EXPERTS` for half of the characters on average, a window between 20 and 80%; else any."""
    follows_B1 = 0.2 + 0.6 * torch.rand(WINDOWS, 1, generator=draw)
    follows_BS = torch.rand(WINDOWS, CHARACTERS, generator=draw) < follows_B1
    return torch.where(follows_BS, label_BS % EXPERTS, at_random(draw, EXPERTS))


def entropy_of(*share_N: float) -> float:
    """Of events with these probabilities and one with the rest."""
    return -sum(share * math.log(share) for share in (*share_N, 1.0 - sum(share_N)))


def followed_share() -> float:
    """Of what is explained by then: the expert of the label has 1/2 + 1/8 of its characters, each other one 1/8."""
    return 1.0 - entropy_of(*[0.5 / EXPERTS] * (EXPERTS - 1)) / math.log(EXPERTS)


def one(choice_BS: Tensor, label_BS: Tensor, given_BS: Tensor | None = None) -> Explained:
    return explained(choice_BS, label_BS, label="it", given_BS=given_BS, shifts=10)


def holds(result: Explained, share: float) -> bool:
    interval = result.beyond.interval()
    assert interval is not None
    return interval[0] <= share <= interval[1]


def test_what_a_label_explains_beyond_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    planted = [one(followed(draw, label_BS), label_BS) for label_BS in (in_runs(draw, LABELS) for _ in range(REPEATS))]
    null = [one(in_runs(draw, EXPERTS), in_runs(draw, LABELS)) for _ in range(REPEATS)]
    calibrated(
        "share of the choice that a label explains, less chance",
        f"{WINDOWS} windows that follow it by 20 to 80%, labels in runs of 1 to 9",
        covers=[holds(result, followed_share()) for result in planted],
        false=[result.beyond.resolved() for result in null],
    )


def test_what_a_label_explains_of_who_is_dropped_in_batches_that_share_places() -> None:
    """A batch drops 20 to 60% of half of the labels, and a quarter of that of the others. Null: the same of all."""
    draw = torch.Generator().manual_seed(2)

    def dropped(label_BS: Tensor, of_others: float) -> Tensor:
        rate_B1 = 0.2 + 0.4 * torch.rand(LEAST, 1, generator=draw)
        rate_BS = torch.where(label_BS < LABELS // 2, rate_B1, of_others * rate_B1)
        return (torch.rand(label_BS.shape, generator=draw) < rate_BS).long()

    labels = [in_runs(draw, LABELS).view(LEAST, -1) for _ in range(REPEATS)]
    planted, null = ([one(dropped(x_BS, of_others), x_BS) for x_BS in labels] for of_others in (0.25, 1.0))
    share = 1.0 - (entropy_of(0.4) + entropy_of(0.1)) / 2 / entropy_of(0.25)
    calibrated(
        "share of who is dropped that a label explains, less chance",
        f"{LEAST} batches that drop 20 to 60%, labels in runs of 1 to 9",
        covers=[holds(result, share) for result in planted],
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
        f"{WINDOWS} windows that follow the label, or the character, by 20 to 80%",
        covers=[holds(result, followed_share()) for result in planted],
        false=[result.beyond.resolved() for result in null],
    )
