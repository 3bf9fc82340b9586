"""How many experts does a token get? The mean by character and by difficulty, for routers whose number varies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.inspection.atlas import CHARACTER
from switch_lm.inspection.drops import FIFTHS, fifths
from switch_lm.pages.characters import visible
from switch_lm.probe.reading import Reading
from switch_lm.stats.clusters import bound, difference, mean_where, plus_minus
from switch_lm.stats.intervals import Estimate

DIFFICULTY = "difficulty"


@dataclass(frozen=True)
class Group:
    """Tokens of one character, or of one fifth by loss."""

    by: str  # CHARACTER or DIFFICULTY
    value: str  # the character as it is shown; the fifth, from 0, the easiest
    count: int
    layers: tuple[tuple[Estimate, float], ...]  # experts per token, and the share of the tokens that have none


@dataclass(frozen=True)
class ExpertsPerToken:
    """With nothing dropped: all characters, the most frequent first, then the fifths, the easiest first."""

    every: Group  # all tokens
    groups: tuple[Group, ...]
    hardest_L: tuple[Estimate, ...]  # the hardest fifth less the easiest

    @property
    def comparisons(self) -> int:
        """How many intervals decide a claim: one in each layer."""
        return len(self.hardest_L)

    def findings(self, blocks: Sequence[int]) -> list[str]:
        """One sentence per layer, named by its block."""
        result = []
        for block, (number, without), hardest in zip(blocks, self.every.layers, self.hardest_L, strict=True):
            most = bound([hardest], self.comparisons, either_way=True)
            shows = hardest.error is None or hardest.resolved(self.comparisons)
            result.append(
                f"Layer {block}: {plus_minus(number, '.2f')} experts per token, {without:.1%} of tokens have none; "
                f"from the easiest to the hardest fifth by loss this changes by {plus_minus(hardest, '+.2f')}"
                f"{'' if shows else f': no difference shows, at most {most:.2f} either way'}."
            )
        return result


def experts_per_token(reading: Reading, ids_BS: Tensor, characters: str) -> ExpertsPerToken | None:
    """None where every token of every layer has as many. `characters`: what each id stands for."""
    number_LBS, fifth_BS = reading.number_LBS, fifths(reading.nll_BS)
    if number_LBS.unique().numel() == 1:
        return None
    frequent = torch.bincount(ids_BS.flatten()).argsort(descending=True, stable=True).tolist()
    marks = [(CHARACTER, visible(characters[v]), ids_BS == v) for v in frequent]
    marks += [(DIFFICULTY, str(q), fifth_BS == q) for q in range(FIFTHS)]
    ends_BS = fifth_BS == FIFTHS - 1, fifth_BS == 0
    return ExpertsPerToken(
        _group("", "", number_LBS, fifth_BS >= 0),
        tuple(_group(by, value, number_LBS, where_BS) for by, value, where_BS in marks if where_BS.any()),
        tuple(difference(number_BS, *ends_BS) or Estimate(math.nan, 0) for number_BS in number_LBS),
    )


def _group(by: str, value: str, number_LBS: Tensor, where_BS: Tensor) -> Group:
    estimates = (mean_where(number_BS, where_BS) or Estimate(math.nan, 0) for number_BS in number_LBS)
    without_L = (number_LBS[:, where_BS] == 0).double().mean(dim=1).tolist()
    return Group(by, value, int(where_BS.sum()), tuple(zip(estimates, without_L, strict=True)))
