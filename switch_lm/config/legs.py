"""The legs of a run that was trained longer: each begins where the one before ended, with a schedule of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from switch_lm.config.keys import Rule

HOW = ("rewarm", "decay")
LEG = re.compile(rf"({'|'.join(HOW)}) after (\d+) of (\d+)")


class Leg(NamedTuple):
    """A leg after the first, as `optim.legs` stores it: `rewarm after 700 of 1800`."""

    how: str  # of HOW
    after: int  # steps that were done before it
    of: int  # the goal of the leg before, which may have been stopped

    def __str__(self) -> str:
        return f"{self.how} after {self.after} of {self.of}"


def read_legs(texts: Sequence[Any]) -> list[Leg]:
    """ValueError for a text that is no leg."""
    matches = [LEG.fullmatch(str(text)) for text in texts]
    if None in matches:
        raise ValueError(texts)
    return [Leg(match[1], int(match[2]), int(match[3])) for match in matches if match is not None]


def _are_legs(texts: Sequence[Any]) -> bool:
    try:
        legs = read_legs(texts)
    except ValueError:
        return False
    return all(0 < leg.after <= leg.of for leg in legs) and all(a.after < b.after for a, b in pairwise(legs))


ARE_LEGS = Rule("must be as resume wrote it, such as [rewarm after 700 of 1800]; leave it out", _are_legs)


def with_new_leg(texts: Sequence[Any], *, done: int, goal: int, how: str) -> list[str]:
    """The legs of a run that goes on after `done` steps to another goal than `goal`; one without a step is left out."""
    legs = read_legs(texts)
    begun = [leg for leg in legs if leg.after < done]
    of = legs[len(begun)].of if len(begun) < len(legs) else goal
    return [*map(str, begun), *([str(Leg(how, done, of))] if done else [])]
