"""Which expert gets which character, as a picture, and how the rows of maps of experts are named."""

import math
from collections.abc import Sequence

from torch import Tensor

from switch_lm.pages.characters import visible
from switch_lm.pages.coloured_text import NONE, busiest, the_busiest
from switch_lm.pages.document import HeatMap

MOST_NAMED = 100


def order(characters: str) -> list[int]:
    """The places of the characters as a reader looks for them: line ends, spaces, marks, digits, A to Z, a to z."""

    def kind(c: str) -> int:
        kinds = (c == "\n", c.isspace(), not c.isalnum(), not c.isalpha(), c.isupper(), True)
        return kinds.index(True)

    return sorted(range(len(characters)), key=lambda i: (kind(characters[i]), characters[i]))


def shown(count_V: Tensor, characters: str) -> list[int]:
    """The most frequent characters that occur, up to 100, in a reader's order."""
    frequent = set(count_V.argsort(descending=True, stable=True)[:MOST_NAMED].tolist())
    return [i for i in order(characters) if count_V[i] and i in frequent]


def atlas(
    share_EV: Tensor,
    characters: str,
    places: list[int],
    *,
    load_E: Sequence[float],
    name: str = "routing_atlas",
    title: str = "Which expert gets which character",
) -> HeatMap:
    """One layer's, of its busiest experts by `load_E`; `places`: the characters to show.

    A row of `share_EV` beyond those experts is the share that no expert gets.
    """
    rows = busiest(load_E)
    names, values = [f"{e:02d}" for e in rows], share_EV[rows][:, places].tolist()
    if len(share_EV) > len(load_E):  # a blank row, so that the name is there among however many
        names, values = [*names, "", NONE], [*values, [math.nan] * len(places), share_EV[-1, places].tolist()]
    return HeatMap(
        name=name,
        title=title,
        alt="A row for each expert, a column for each character, as colour the share of it that the expert gets.",
        x_label="character read (\\n ends a line, ␣ is a space)",
        y_label=f"expert{the_busiest(len(load_E))}",
        value_label="share of a character's occurrences that an expert gets",
        x_names=tuple(visible(characters[i]) for i in places),
        y_names=tuple(names),
        values=tuple(map(tuple, values)),
        low=0.0,
        high=1.0,
        in_bands=True,
    )


def layer_name(number: int) -> str:
    return f"layer {number:02d}"


def experts(count: int) -> tuple[str, ...]:
    return tuple(f"{expert:02d}" for expert in range(count))


def stacked(
    values_LEN: Sequence[Sequence[Sequence[float]]], blocks: Sequence[int], *, experts_L: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Names and rows of one map of all layers, by the numbers of their blocks, with a blank row between two of them.

    `experts_L`: whose rows these are.
    """
    names, rows = list[str](), list[tuple[float, ...]]()
    for number, numbers, values_EN in zip(blocks, experts_L, values_LEN, strict=True):
        if rows:
            names.append("")
            rows.append((math.nan,) * len(values_EN[0]))
        first, *others = (f"{expert:02d}" for expert in numbers)
        names += [f"{layer_name(number)} · {first}", *others]
        rows += [tuple(row) for row in values_EN]
    return tuple(names), tuple(rows)
