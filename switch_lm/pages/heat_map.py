"""How a heat map is drawn: its cells, the scale of their colours above them, and the names that there is room for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.text import Text

from switch_lm.pages.document import HeatMap
from switch_lm.pages.picture_axes import LINE_LENGTHS, MARGIN, WIDTH
from switch_lm.pages.picture_marks import INK, plain

# Blue and orange are told apart by everyone; the middle is grey, since the paper's colour is that of what is not there.
TWO_SIDED = LinearSegmentedColormap.from_list("two_sided", ["#053a66", "#3f8ac0", "#dedbd3", "#e08214", "#7f3b08"])
ONE_SIDED = colormaps["viridis"]
ROWS_HEIGHT, ROW_AT_LEAST, ROW_AT_MOST = 300.0, 2.5, 18.0  # points
NAME_SIZE, NAME_HEIGHT, AIR = 7.5, 9.0, 1.5
SCALE_WIDTH, SCALE_HEIGHT = 160.0, 9.0


def colours(heat_map: HeatMap) -> tuple[Colormap, Normalize]:
    """The colours, and what places a number among them; what is beyond an end has the colour of that end."""
    if heat_map.centre is None:
        return ONE_SIDED, Normalize(heat_map.low, heat_map.high)
    return TWO_SIDED, TwoSlopeNorm(heat_map.centre, heat_map.low, heat_map.high)


def draw_heat_map(figure: Figure, heat_map: HeatMap, *, title: bool) -> None:
    """Draws on an empty figure, which becomes as large as it takes.

    With its title it stands alone and has a margin; without, it lines up with the text of a page.
    """
    margin = MARGIN if title else 0.0
    cells, scale = _cells(figure, heat_map), _scale(figure, heat_map)
    left = margin + max(_widths(figure, heat_map.y_names), default=0.0) + 6
    right, row = margin + WIDTH - max(_widths(figure, heat_map.x_names), default=0.0) / 2, _row_height(heat_map)
    _name_rows(cells, heat_map.y_names, row)
    lines = _name_columns(cells, heat_map.x_names, (right - left) / max(1, len(heat_map.x_names)))
    heading = _text(figure, heat_map.title if title else "", fontsize=12.5, fontweight="bold")
    labels = heat_map.value_label, heat_map.y_label, heat_map.x_label
    value, upright, across = (_text(figure, label, alpha=0.8) for label in labels)
    across.set(ha="right")
    below, height = 7 + NAME_HEIGHT, row * len(heat_map.y_names)
    _stack(
        figure,
        [  # from the bottom: what it is, its left and right end, its height, and the gap above it
            (across, right, right, _height(across), below + NAME_HEIGHT * (lines - 1)),
            (cells, left, right, height, 7),
            (upright, margin, right, _height(upright), below + 4),
            (scale, margin + AIR, margin + AIR + SCALE_WIDTH, SCALE_HEIGHT, 5),
            (value, margin, right, _height(value), 11 if heading.get_text() else 0),
            (heading, margin, right, _height(heading), 0),
        ],
        margin=margin,
    )


def _stack(figure: Figure, parts: Sequence[tuple[Text | Axes, float, float, float, float]], *, margin: float) -> None:
    """Puts the parts one above the other; the figure becomes as high as they are."""
    full_width, full_height = WIDTH + 2 * margin, sum(part[3] + part[4] for part in parts) + 2 * margin
    figure.set_size_inches(full_width / 72, full_height / 72)
    y = margin
    for part, left, right, height, gap in parts:
        if isinstance(part, Text):
            part.set_position((left / full_width, y / full_height))
        else:
            box = left / full_width, y / full_height, (right - left) / full_width, height / full_height
            part.set_position(box)
        y += height + gap


def _cells(figure: Figure, heat_map: HeatMap) -> Axes:
    """The colours in a thin frame, which shows how far the map reaches where nothing is known yet."""
    axes = figure.add_axes((0, 0, 1, 1))
    colour_of, norm = colours(heat_map)
    if heat_map.values:
        values = np.ma.masked_invalid(np.array(heat_map.values, dtype=float))
        axes.imshow(values, cmap=colour_of, norm=norm, aspect="auto", interpolation="none")
    columns, rows = max(1, len(heat_map.x_names)), max(1, len(heat_map.y_names))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    _frame(axes)
    return axes


def _scale(figure: Figure, heat_map: HeatMap) -> Axes:
    """The colours from the lowest number to the highest, with these and the middle one below it."""
    axes = figure.add_axes((0, 0, 1, 1))
    colour_of, norm = colours(heat_map)
    low, high = heat_map.low, heat_map.high
    ramp = np.linspace(low, high, 256)[None]
    extent = (low, high, 0.0, 1.0)
    axes.imshow(ramp, cmap=colour_of, norm=norm, aspect="auto", extent=extent, interpolation="none")
    ticks = [low, (low + high) / 2 if heat_map.centre is None else heat_map.centre, high]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    axes.set_yticks([])
    _frame(axes)
    return axes


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(color=INK, linewidth=0.6, alpha=0.6)
    axes.tick_params(length=0, pad=3, labelsize=NAME_SIZE, labelcolor=INK)


def _row_height(heat_map: HeatMap) -> float:
    return min(ROW_AT_MOST, max(ROW_AT_LEAST, ROWS_HEIGHT / max(1, len(heat_map.y_names))))


def _name_rows(axes: Axes, names: Sequence[str], row: float) -> None:
    """As many names as fit, at equal distances from the first of a group on; a row without a name parts groups."""
    every = next(step for n in range(32) if (step := 2**n) * row >= NAME_SIZE)
    shown, place = list[int](), -1
    for i, name in enumerate(names):
        place = place + 1 if name.strip() else -1
        if place >= 0 and place % every == 0:
            shown.append(i)
    axes.set_yticks(shown, [_one_line(names[i]) for i in shown])


def _name_columns(axes: Axes, names: Sequence[str], column: float) -> int:
    """As many names as fit, at equal distances; short ones first try up to three lines, in turn. How many lines."""
    figure = axes.get_figure(root=True)
    assert figure
    widths = _widths(figure, names)

    def fit(every: int, lines: int) -> bool:
        apart = every * lines
        neighbours = zip(widths[::every], widths[apart::every], strict=False)
        return all((a + b) / 2 + AIR <= apart * column for a, b in neighbours)

    in_lines = [(1, 1), (1, 2), (1, 3)] if all(len(name) <= 2 for name in names) else []
    thinned = ((step * 10**n, 1) for n in range(6) for step in (1, 2, 5))
    every, lines = next(way for way in (*in_lines, *thinned) if fit(*way))
    shown = range(0, len(names), every)
    axes.set_xticks(list(shown), ["\n" * (n % lines) + _one_line(names[i]) for n, i in enumerate(shown)])
    return lines


def _widths(figure: Figure, names: Sequence[str]) -> list[float]:
    """How wide each name is, in points."""
    probe = figure.text(0, 0, "", fontsize=NAME_SIZE)
    widths: dict[str, float] = {}
    for name in set(names):
        probe.set_text(_one_line(name))
        widths[name] = probe.get_window_extent().width if name.strip() else 0.0
    probe.remove()
    return [widths[name] for name in names]


def _one_line(name: str) -> str:
    """The name as it is, without what is no character: a backquote may be what a column is about."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", name)


def _text(figure: Figure, text: str, **look: Any) -> Text:
    """The text, in lines that are no longer than the map is wide."""
    found = figure.text(0, 0, "", va="bottom", **look)
    for length in LINE_LENGTHS:
        found.set_text("\n".join(wrap(plain(text), length)))
        if not found.get_text() or found.get_window_extent().width <= WIDTH:
            break
    return found


def _height(text: Text) -> float:
    return text.get_window_extent().height if text.get_text() else 0.0
