"""How much of a choice a label explains, next to what the same label explains by chance."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.stats.clusters import LEAST, jackknife, plus_minus
from switch_lm.stats.intervals import Estimate

SHIFTS = 100
GROUPS = 32  # of neighbouring windows, that are left out one at a time
NOTHING = 1e-9  # nats; an entropy below it is rounding
DENSE = 8  # cells per token, up to which counting in a table is cheaper than sorting


@dataclass(frozen=True)
class Explained:
    """The share of a choice's entropy that a label explains: 0 nothing, 1 the label determines the choice."""

    label: str
    given: str | None  # what was known before; None: nothing
    share: float
    chance: float  # the mean over shifted labels; not 0, since few characters always fit a little
    beyond: Estimate  # the share less chance

    def beyond_chance(self, comparisons: int) -> bool:
        """Whether more is explained than by chance, corrected for so many comparisons."""
        return self.beyond.mean > 0.0 and self.beyond.resolved(comparisons)

    def __str__(self) -> str:
        return f"{self.label} {plus_minus(self.beyond, '.1%', 'group')}"


def explained(
    choice_BS: Tensor,
    label_BS: Tensor,
    *,
    label: str,
    given_BS: Tensor | None = None,
    given: str | None = None,
    seed: int = 0,
    shifts: int = SHIFTS,
) -> Explained:
    """I(choice; label | given) / H(choice | given) of B windows in the order of the text, from counts.

    Chance is the same of labels that are shifted in a circle by random offsets. They keep their frequencies and their
    order, so that runs of equal labels stay runs: drawn labels would call any slowly changing label a discovery. Labels
    of a fixed period fit a choice of that period at every shift, and cannot be distinguished from chance.
    With `given_BS` the labels of each of its values are shifted among themselves. So they go with it as often as
    before, and what the label explains only because it goes with what is given is in the chance as well.
    The standard error of the share less chance is that of a jackknife over groups of windows, or the deviation of the
    shifted labels if that is larger: it is what varies where a label explains nothing.
    """
    given_BS = torch.zeros_like(choice_BS) if given_BS is None else given_BS
    choice_T, label_T, given_T = (x_BS.flatten() for x_BS in (choice_BS, label_BS, given_BS))
    given_entropy, with_choice = entropy(given_T), entropy(choice_T, given_T)
    free = with_choice - given_entropy
    groups = min(GROUPS, len(choice_BS))
    if free < NOTHING:  # a single expert, or one for each value: nothing is left to explain
        return Explained(label, given, 0.0, 0.0, Estimate(0.0, groups))
    known = with_choice + entropy(label_T, given_T) - given_entropy
    share = (known - entropy(choice_T, given_T, label_T)) / free
    draw, pair_T = torch.Generator().manual_seed(seed), _joint((choice_T, given_T))
    joint = [entropy(pair_T, label_T[source_T]) for source_T in shifted_within(given_T, shifts, draw)]
    chance_N = (known - torch.tensor(joint, dtype=torch.float64)) / free
    chance = chance_N.mean().item()
    deviation = chance_N.std(correction=0).item()
    without_G = _share_without(choice_BS, label_BS, given_BS)  # all higher by what fewer tokens fit by chance
    spread = jackknife(without_G.mean().item(), without_G, count=groups, effective=groups, scale=1.0)
    error = max(spread.error or 0.0, deviation)
    interval = (error, groups - 1.0) if groups >= LEAST and error > NOTHING else ()
    return Explained(label, given, share, chance, Estimate(share - chance, groups, *interval))


def _share_without(choice_BS: Tensor, label_BS: Tensor, given_BS: Tensor) -> Tensor:
    """The share that is explained without each group of windows (G)."""
    B, S = choice_BS.shape
    group_B = torch.arange(B, device=choice_BS.device) * min(GROUPS, B) // B
    group_T, choice_T, label_T, given_T = (
        x_BS.flatten() for x_BS in (group_B[:, None].expand(B, S), choice_BS, label_BS, given_BS)
    )
    given_G = entropies_without(group_T, given_T)
    with_choice_G, with_label_G = (entropies_without(group_T, x_T, given_T) for x_T in (choice_T, label_T))
    free_G = with_choice_G - given_G
    explained_G = free_G + with_label_G - entropies_without(group_T, choice_T, given_T, label_T)
    return torch.where(free_G > NOTHING, explained_G / free_G, 0.0)


def entropies_without(group_T: Tensor, *labels: Tensor) -> Tensor:
    """The entropy of the tokens outside of each group (G), in nats; groups are numbered from 0 without a gap."""
    code_T, group_size_G = _joint(labels).unique(return_inverse=True)[1], torch.bincount(group_T)
    shape = len(group_size_G), int(code_T.max()) + 1
    inside_GN = torch.bincount(group_T * shape[1] + code_T, minlength=shape[0] * shape[1]).view(shape)
    count_GN, num_tokens_G = (inside_GN.sum(dim=0) - inside_GN).double(), (len(code_T) - group_size_G).double()
    return num_tokens_G.log() - torch.xlogy(count_GN, count_GN).sum(dim=1) / num_tokens_G


def entropy(*labels: Tensor) -> float:
    """Of the joint distribution of labels from 0 (T,), in nats, as counted."""
    code_T = _joint(labels)
    count_N = (code_T.unique(return_counts=True)[1] if _sparse(code_T) else torch.bincount(code_T)).double()
    num_tokens = code_T.numel()
    return max(0.0, math.log(num_tokens) - torch.xlogy(count_N, count_N).sum().item() / num_tokens)


def _joint(labels: Sequence[Tensor]) -> Tensor:
    """One number for each combination of labels, in their order; where few of them occur, these are numbered again."""
    code_T = labels[0]
    for label_T in labels[1:]:
        if _sparse(code_T):
            code_T = code_T.unique(return_inverse=True)[1]
        code_T = code_T * (int(label_T.max()) + 1) + label_T
    return code_T


def _sparse(code_T: Tensor) -> bool:
    """Whether a table of all codes would be far larger than the tokens (T,)."""
    return int(code_T.max()) >= DENSE * code_T.numel()


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
