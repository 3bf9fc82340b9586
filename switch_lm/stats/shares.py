"""Which classes stand out among the characters of a group: how many times as common they are there as in the text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.stats.clusters import LEAST, jackknife
from switch_lm.stats.intervals import Estimate

FIFTHS = 5
TIMES = 1.5  # a class stands out that is surely more than so many times as common in a group as in all


@dataclass(frozen=True)
class ClassShare:
    """A class of characters in one group; `log_ratio` is that of the first two shares."""

    name: str
    share: float  # of the group's characters
    in_text: float  # of all
    taken: float  # of the class's characters, by the group
    log_ratio: Estimate  # an interval only where the ratio is above `TIMES`; NaN where the group has none

    def least(self, comparisons: int) -> float:
        """The lower end of the interval of the ratio, corrected for so many comparisons; 0 where there is none."""
        interval = self.log_ratio.interval(comparisons)
        return 0.0 if interval is None else math.exp(interval[0])


def class_shares(at_EBS: Tensor, marks: Mapping[str, Tensor]) -> list[tuple[ClassShare, ...]]:
    """For each group (E) every class, from which characters of B windows belong to which group and class, bool."""
    B, S = at_EBS.shape[1:]
    mark_CBS = torch.stack(list(marks.values()))
    both_ECB = torch.einsum("ebs,cbs->ecb", at_EBS.float(), mark_CBS.float()).round()
    group_EB, class_CB, all_B = at_EBS.sum(dim=2), mark_CBS.sum(dim=2), torch.full((B,), S)
    in_text_C, result = (class_CB.sum(dim=1) / (B * S)).tolist(), []
    for group_B, both_CB in zip(group_EB, both_ECB, strict=True):
        share_C, of_group = (both_CB.sum(dim=1) / group_B.sum()).tolist(), list[ClassShare]()
        for name, share, in_text, both_B, class_B in zip(marks, share_C, in_text_C, both_CB, class_CB, strict=True):
            clear = share > TIMES * in_text
            ratio = log_ratio(both_B, group_B, class_B, all_B) if clear else Estimate(_log(share / in_text), 0)
            of_group.append(ClassShare(name, share, in_text, (both_B.sum() / class_B.sum()).item(), ratio))
        result.append(tuple(of_group))
    return result


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0.0 else math.nan


def log_ratio(both_B: Tensor, first_B: Tensor, second_B: Tensor, all_B: Tensor) -> Estimate:
    """The logarithm of how many times as common a second mark is among the values with a first one as among all.

    From how many values of each of B units have both marks, the first, the second, and in all; one at least has both.
    The interval, to the power of e, is one of the ratio.
    """
    number_MB, count = torch.stack([both_B, first_B, second_B, all_B]).double(), int((both_B > 0).sum())
    number_M1, sign_M = number_MB.sum(dim=1, keepdim=True), number_MB.new_tensor([1.0, -1.0, -1.0, 1.0])
    center = (sign_M @ number_M1.log()).item()
    if count < LEAST:
        return Estimate(center, count)
    effective = (number_M1[:, 0].square() / number_MB.square().sum(dim=1)).min().item()
    return jackknife(center, sign_M @ (number_M1 - number_MB).log(), count=count, effective=effective, scale=1.0)


def most_shared(shared_EF: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns in pairs, each in one at most, so that their sum is the largest (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(shared_EF.numpy(), maximize=True)
    return rows.tolist(), columns.tolist()


def fifths(nll_BS: Tensor) -> Tensor:
    """The fifth by loss that each token is in (B, S), from 0, the easiest, to 4."""
    return (nll_BS.flatten().argsort(stable=True).argsort() * FIFTHS // nll_BS.numel()).view_as(nll_BS)


def shares_by(dropped_LBS: Tensor, label_BS: Tensor, size: int) -> Tensor:
    """The share of tokens with each label from 0 to `size` - 1 that each layer drops (L, size)."""
    label_T = label_BS.reshape(-1)
    count_N = torch.bincount(label_T, minlength=size).double()
    dropped_LN = [torch.bincount(label_T, x_BS.flatten().double(), minlength=size) for x_BS in dropped_LBS]
    return torch.stack(dropped_LN) / count_N


def independent(share_L: list[float]) -> tuple[float, ...]:
    """The probabilities that exactly 0, 1, ... of independent events happen."""
    probability = [1.0]
    for share in share_L:
        here, one_more = [p * (1 - share) for p in probability] + [0.0], [0.0] + [p * share for p in probability]
        probability = [a + b for a, b in zip(here, one_more, strict=True)]
    return tuple(probability)
