"""Two models, A and B, beside each other: their tables and maps, and what B differs in from A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from switch_lm.pages.document import Beside, Cell, HeatMap, Table

NONE = Cell("-")
Rows = Sequence[tuple[Cell, ...]]


def side_by_side(caption: str, headings: tuple[str, ...], rows: Sequence[Rows], note: str) -> Table:
    """The rows of one model as they are; of two models a row per figure, with A, B and their difference."""
    if len(rows) == 1:
        return Table(caption, headings, tuple(rows[0]), note)
    a, b = (
        {
            f"{row[0].text}: {name}" if len(headings) > 2 else row[0].text: cell
            for row in of_one
            for name, cell in zip(headings[1:], row[1:], strict=True)
        }
        for of_one in rows
    )
    both = {name: (a.get(name, NONE), b.get(name, NONE)) for name in {**a, **b}}
    shown = [(Cell(name), *cells, _difference(*cells)) for name, cells in both.items() if set(cells) != {NONE}]
    return Table(caption, (headings[0], "A", "B", "B less A"), tuple(shown), f"{note} B less A: of the means.")


def _difference(a: Cell, b: Cell) -> Cell:
    if a.sort is None or b.sort is None:
        return NONE
    whole = float(a.sort).is_integer() and float(b.sort).is_integer()
    return Cell(f"{b.sort - a.sort:{'+.1%' if '%' in a.text else '+,.0f' if whole else '+.4f'}}", b.sort - a.sort)


def maps_beside(maps: Sequence[HeatMap], pairs: Sequence[tuple[str, str]], name: str) -> Beside:
    """One map or two; of two with the same columns also their difference, called `name`, of the `pairs` of rows.

    The rows of B follow the order of the pairs.
    """
    if len(maps) < 2 or maps[0].x_names != maps[1].x_names:
        return Beside(tuple(maps))
    a, b = (dict(zip(one.y_names, one.values, strict=True)) for one in maps)
    pairs = [(first, second) for first, second in pairs if first in a and second in b]
    order = list(dict.fromkeys([*(second for _, second in pairs), *b]))
    difference = replace(
        maps[0],
        name=name,
        title=f"B less A: {maps[0].title.partition(': ')[2]}",
        value_label=f"B less A: {maps[0].value_label}",
        y_names=tuple(first if first == second else f"{first}, {second}" for first, second in pairs),
        values=tuple(tuple(y - x for x, y in zip(a[i], b[j], strict=True)) for i, j in pairs),
        low=-maps[0].high,
        high=maps[0].high,
        centre=0.0,
    )
    return Beside((maps[0], replace(maps[1], y_names=tuple(order), values=tuple(b[j] for j in order)), difference))
