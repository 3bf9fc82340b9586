"""A curve as a few lines of text: dots of Braille, or stars where the terminal has no Unicode."""

import math
from collections.abc import Sequence
from statistics import fmean

WIDTH, HEIGHT = 60, 8  # characters
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bits of a Braille pattern: 2 columns of 4
MARK = "x"


def plot(
    curve: Sequence[tuple[float, float]], marks: Sequence[tuple[float, float]] = (), *, unicode: bool = True
) -> list[str]:
    """Lines of at most 70 characters: `curve` (x, y) as dots, the mean of each column, and `marks` as crosses.

    The smallest and largest y stand at the left, those of x below. Points that are not finite are left out; without any
    there are no lines.
    """
    curve, marks = ([point for point in points if all(map(math.isfinite, point))] for points in (curve, marks))
    if not curve:
        return []
    wide, high = (2, 4) if unicode else (1, 1)
    xs = [x for x, _ in (*curve, *marks)]

    def place(value: float, ends: Sequence[float], cells: int) -> int:
        low, high = min(ends), max(ends)
        return round((value - low) / (high - low) * (cells - 1)) if high > low else 0

    columns: dict[int, list[float]] = {}
    for x, y in curve:
        columns.setdefault(place(x, xs, wide * WIDTH), []).append(y)
    means = {column: fmean(own) for column, own in columns.items()}
    ys = [*means.values(), *(y for _, y in marks)]
    cells: dict[tuple[int, int], int] = {}  # row from the top, column
    for column, mean in means.items():
        row = high * HEIGHT - 1 - place(mean, ys, high * HEIGHT)
        bit = DOTS[column % 2][row % 4] if unicode else 1
        cell = row // high, column // wide
        cells[cell] = cells.get(cell, 0) | bit
    shown = {cell: chr(0x2800 + bits) if unicode else "*" for cell, bits in cells.items()}
    for x, y in marks:
        shown[HEIGHT - 1 - place(y, ys, HEIGHT), place(x, xs, WIDTH)] = MARK
    labels = {0: f"{max(ys):.2f}", HEIGHT - 1: f"{min(ys):.2f}"}
    rows = [
        f"{labels.get(row, ''):>7} {''.join(shown.get((row, column), ' ') for column in range(WIDTH))}".rstrip()
        for row in range(HEIGHT)
    ]
    return [*rows, f"{'':>7} {f'{min(xs):,.0f}':<{WIDTH // 2}}{f'{max(xs):,.0f}':>{WIDTH - WIDTH // 2}}"]
