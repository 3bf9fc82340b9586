"""A curve of text is where its numbers say."""

from __future__ import annotations

import math

import pytest

from switch_lm.training.terminal_plot import HEIGHT, MARK, WIDTH, plot


@pytest.mark.parametrize("unicode", [True, False])
def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right(unicode: bool) -> None:
    *rows, axis = plot([(x, 3.0 - x / 100) for x in range(101)], unicode=unicode)
    cells = [row[8:].ljust(WIDTH) for row in rows]
    assert len(rows) == HEIGHT and all(len(row) <= 8 + WIDTH for row in (*rows, axis))
    assert cells[0][0] != " " and cells[-1][-1] != " " and cells[0][-1] == cells[-1][0] == " "
    assert all(any(row[column] != " " for row in cells) for column in range(WIDTH))
    assert rows[0].startswith("   3.00 ") and rows[-1].startswith("   2.00 ")
    assert axis.split() == ["0", "100"]
    assert all(ord(character) < 128 for row in rows for character in row) is not unicode


def test_marks_lie_over_the_curve_and_a_column_is_a_mean() -> None:
    rows = plot([(0, 1.0), (0, 3.0), (10, 2.0)], [(5, 4.0)], unicode=False)
    assert rows[0][8:].rstrip() == " " * 30 + MARK  # round half to even: column 29.5
    assert rows[HEIGHT - 1][8:] == "*" + " " * 58 + "*"  # both means are 2, the lowest


@pytest.mark.parametrize("curve", [[], [(0.0, math.nan)], [(1.0, 2.0)], [(0.0, 2.0), (1.0, 2.0), (2.0, math.inf)]])
def test_a_curve_of_nothing_or_of_one_height_is_shown_too(curve: list[tuple[float, float]]) -> None:
    rows = plot(curve)
    assert len(rows) == (HEIGHT + 1 if any(math.isfinite(y) for _, y in curve) else 0)
