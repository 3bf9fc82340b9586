"""How much of a choice a label explains, next to what the same label explains by chance."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SHIFTS = 100
CONFIDENCE = 0.95
NOTHING = 1e-9  # nats; an entropy below it is rounding


@dataclass(frozen=True)
class Explained:
    """The share of a choice's entropy that a label explains: 0 nothing, 1 the label determines the choice."""

    label: str
    given: str | None  # what was known before; None: nothing
    share: float
    chance: float  # the mean over shifted labels; not 0, since few characters always fit a little
    chance_high: float  # their 95 % quantile

    @property
    def beyond_chance(self) -> bool:
        """Whether more is explained than by 95 % of the shifted labels."""
        return self.share > self.chance_high + NOTHING

    def __str__(self) -> str:
        return f"{self.label} {self.share:.1%} (chance {self.chance:.1%})"


def explained(
    choice_T: Tensor,
    label_T: Tensor,
    *,
    label: str,
    given_T: Tensor | None = None,
    given: str | None = None,
    seed: int = 0,
    shifts: int = SHIFTS,
) -> Explained:
    """I(choice; label | given) / H(choice | given) of T tokens in the order of the text, from counts.

    Chance is the same of labels that are shifted in a circle by random offsets. They keep their frequencies and their
    order, so that runs of equal labels stay runs: drawn labels would call any slowly changing label a discovery. Labels
    of a fixed period fit a choice of that period at every shift, and cannot be distinguished from chance.
    With `given_T` the labels of each of its values are shifted among themselves. So they go with it as often as
    before, and what the label explains only because it goes with what is given is in the chance as well.
    """
    given_T = torch.zeros_like(choice_T) if given_T is None else given_T
    given_entropy, with_choice = entropy(given_T), entropy(choice_T, given_T)
    free = with_choice - given_entropy
    if free < NOTHING:  # a single expert, or one for each value: nothing is left to explain
        return Explained(label, given, 0.0, 0.0, 0.0)
    known = with_choice + entropy(label_T, given_T) - given_entropy
    share = (known - entropy(choice_T, given_T, label_T)) / free
    draw = torch.Generator().manual_seed(seed)
    joint = [entropy(choice_T, given_T, label_T[source_T]) for source_T in shifted_within(given_T, shifts, draw)]
    chance_N = (known - torch.tensor(joint, dtype=torch.float64)) / free
    return Explained(label, given, share, chance_N.mean().item(), chance_N.quantile(CONFIDENCE).item())


def entropy(*labels: Tensor) -> float:
    """Of the joint distribution of labels from 0 (T,), in nats, as counted."""
    code_T = labels[0]
    for label_T in labels[1:]:
        code_T = code_T * (int(label_T.max()) + 1) + label_T
    count_N = torch.bincount(code_T).double()
    num_tokens = code_T.numel()
    return max(0.0, math.log(num_tokens) - torch.xlogy(count_N, count_N).sum().item() / num_tokens)


def shifted_within(group_T: Tensor, shifts: int, draw: torch.Generator) -> Iterator[Tensor]:
    """`shifts` times the token (T,) that each one's label is taken from: a later one of its group, in a circle.

    All tokens of a group move by one offset, drawn from 1 to its size - 1.
    """
    order_T = group_T.argsort(stable=True)
    size_G = torch.bincount(group_T)
    sorted_group_T = group_T[order_T]
    start_T, size_T = (size_G.cumsum(0) - size_G)[sorted_group_T], size_G[sorted_group_T]
    rank_T = torch.arange(group_T.numel(), device=group_T.device) - start_T
    for _ in range(shifts):
        uniform_G = torch.rand(size_G.numel(), generator=draw, dtype=torch.float64).to(group_T.device)
        offset_G = 1 + (uniform_G * (size_G - 1)).long()
        source_T = order_T[start_T + (rank_T + offset_G[sorted_group_T]) % size_T]
        yield torch.empty_like(order_T).scatter(0, order_T, source_T)
