"""How numbers are written: sensible digits, a spread, "-" for what is not known."""

from __future__ import annotations

import math

from switch_lm.pages.document import Cell
from switch_lm.report.statistics import Estimate

MISSING = "-"


def plain(value: float | None, digits: int, scale: float = 1.0) -> str:
    """With thousands separated; "-" if it is missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value * scale:,.{digits}f}"


def figures(value: float | None, count: int = 3) -> str:
    """With `count` significant digits and no exponent."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0.0:
        return "0"
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{value * 100:.1f} %"


def spread(found: Estimate | None, digits: int) -> str:
    """Mean ± standard deviation; the mean alone for one seed."""
    if found is None or found.deviation is None:
        return plain(found.mean if found else None, digits)
    return f"{plain(found.mean, digits)} ± {plain(found.deviation, digits)}"


def cell(text: str, sort: float | None = None) -> Cell:
    return Cell(text, sort)


def mean_cell(found: Estimate | None, digits: int) -> Cell:
    return Cell(spread(found, digits), found.mean if found else None)


def percent(ratio: float) -> str:
    """A change as a share: 9.8 % more, 2 % less; a multiple from twice on."""
    if ratio >= 1.0:
        return f"{1 + ratio:.1f} times as much"
    if abs(ratio) < 0.0005:
        return "as much"
    return f"{share(abs(ratio))} {'more' if ratio > 0 else 'less'}"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
