"""How many experts does a token get? The mean by character and by difficulty, for routers whose number varies."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.pages.characters import visible
from switch_lm.probe.reading import Reading
from switch_lm.stats.clusters import mean_where
from switch_lm.stats.intervals import Estimate
from switch_lm.stats.shares import FIFTHS, fifths
from switch_lm.text.classes import CHARACTER

DIFFICULTY = "difficulty"


@dataclass(frozen=True)
class Group:
    """Tokens of one character, or of one fifth by loss."""

    by: str  # CHARACTER or DIFFICULTY
    value: str  # the character as it is shown; the fifth, from 0, the easiest
    count: int
    layers: tuple[tuple[Estimate, float], ...]  # experts per token, and the share of the tokens that have none


def experts_per_token(reading: Reading, ids_BS: Tensor, characters: str) -> list[Group] | None:
    """All characters, the most frequent first, then the fifths, the easiest first; None where all tokens have as many.

    With nothing dropped. `characters`: what each id stands for."""
    number_LBS, fifth_BS = reading.number_LBS, fifths(reading.nll_BS)
    if number_LBS.unique().numel() == 1:
        return None
    frequent = torch.bincount(ids_BS.flatten()).argsort(descending=True, stable=True).tolist()
    marks = [(CHARACTER, visible(characters[v]), ids_BS == v) for v in frequent]
    marks += [(DIFFICULTY, str(q), fifth_BS == q) for q in range(FIFTHS)]
    return [_group(by, x, number_LBS, where_BS) for by, x, where_BS in marks if where_BS.any()]


def _group(by: str, value: str, number_LBS: Tensor, where_BS: Tensor) -> Group:
    estimates = (mean_where(number_BS, where_BS) or Estimate(math.nan, 0) for number_BS in number_LBS)
    without_L = (number_LBS[:, where_BS] == 0).double().mean(dim=1).tolist()
    return Group(by, value, int(where_BS.sum()), tuple(zip(estimates, without_L, strict=True)))
