"""How numbers are written in tables and sentences."""

import math

MISSING = "-"


def plain(value: float | None, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """With separators between thousands; "-" if it is missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value * scale:,.{digits}f}{unit}"


def figures(value: float | None, scale: float = 1.0) -> str:
    """With four significant digits and no exponent."""
    if not value:
        return MISSING if value is None else "0"
    return plain(value, max(0, 3 - math.floor(math.log10(abs(value * scale)))), scale)


def interval(ends: tuple[float, float] | None, digits: int) -> str:
    return MISSING if ends is None else f"{plain(ends[0], digits)} to {plain(ends[1], digits)}"


def ratios(ends: tuple[float, float] | None) -> str:
    """The interval of a ratio from that of its logarithm; with an exponent where it says next to nothing."""
    values = [] if ends is None else [math.exp(end) for end in ends]
    return " to ".join(f"{x:.2f}" if 0.01 <= x < 1000 else f"{x:.0e}" for x in values) or MISSING


def count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
