"""A cost against a loss: a dot for each run, a mark for each mean, the colour of how many slots its experts have."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from switch_lm.pages.document import Place, Scatter
from switch_lm.pages.hover import add_targets
from switch_lm.pages.plots import INK, MARKERS, PAPER, Entries, add_legend, plain, set_ticks, wrapped

SCALE = ("#7B4FB5", "#B5439B", "#CC4678", "#D9622B", "#C98200")  # from the lowest level to the highest
NO_LIMIT = "#009E73"
MARK, DOT, LETTERS = 7.5, 3.0, 7.0  # points
NEAR = ((6.0, 0.0), (-6.0, 0.0), (0.0, 8.0), (0.0, -8.0))  # points from a mark to its name, tried in this order
FAR, LINE, COLUMN = 22.0, 9.5, 12.0  # points to the names of a crowd, of a line, and between marks of one column
WIDE = tuple((x, 9.0 * y) for y in (0, 1, -1, 2, -2, 3, -3, 4, -4) for x in (FAR, -FAR))


def draw_scatter(figure: Figure, picture: Scatter) -> None:
    """Draws dots, marks, the line along the front, and a legend; `add_labels` follows when the layout is settled."""
    axes, entries = figure.add_subplot(), dict[str, Line2D]()
    axes.set(xlabel=wrapped(picture.x_label), ylabel=wrapped(picture.y_label, 36))
    colours, kinds = _colours(picture), list(dict.fromkeys(place.kind for place in picture.places))
    for place in picture.places:
        look: dict[str, Any] = {
            "color": colours[place.level],
            "marker": MARKERS[kinds.index(place.kind) % len(MARKERS)],
        }
        axes.plot(*zip(*place.runs, strict=True), ".", color=look["color"], markersize=2 * DOT, alpha=0.6, zorder=2)
        (mark,) = axes.plot([place.x], [place.y], **look, ls="", ms=MARK, mec=PAPER, mew=0.8, zorder=3)
        entries.setdefault(place.group, mark)
    legend: Entries = [(mark, name) for name, mark in entries.items()]
    front = sorted((place.x, place.y) for place in picture.places if place.front)
    if len(front) > 1:
        legend += [(axes.plot(*zip(*front, strict=True), "--", color=INK, lw=0.9, zorder=1)[0], "not dominated")]
    runs = ((x, y, f"{plain(place.label)}: {y:.4f}, one seed") for place in picture.places for x, y in place.runs)
    add_targets(axes, runs)
    add_targets(axes, ((place.x, place.y, plain(place.hover)) for place in picture.places))
    set_ticks(axes, x_log=picture.x_log)
    add_legend(figure, legend, size=0.75)


def _colours(picture: Scatter) -> dict[float | None, str]:
    """By level: ink without one, a scale from the lowest to the highest, a colour of its own for no limit."""
    limited = sorted({p.level for p in picture.places if p.level is not None and math.isfinite(p.level)})
    scale = LinearSegmentedColormap.from_list("capacity", SCALE, N=257)
    colours: dict[float | None, str] = {None: INK, math.inf: NO_LIMIT}
    return colours | {level: to_hex(scale(n / max(1, len(limited) - 1))) for n, level in enumerate(limited)}


def add_labels(axes: Axes, picture: Scatter) -> None:
    """A name beside each mark, or for a crowded column a list of names in the order of its marks.

    A name that would cover another, or a mark, is left out.
    """
    taken = [_around(axes, x, y, DOT / 2) for place in picture.places for x, y in place.runs]
    taken += [_around(axes, place.x, place.y, MARK / 2) for place in picture.places]
    across, up = axes.transData.transform([(place.x, place.y) for place in picture.places]).T * 72.0 / axes.figure.dpi
    order = sorted(range(len(across)), key=lambda i: (not picture.places[i].front, up[i]))
    near = {i: label for i in order if (label := _label(axes, picture.places[i], NEAR, taken)) is not None}
    crowd = {i for i in order for j in order if j not in near and abs(across[i] - across[j]) < COLUMN}
    for i in crowd & near.keys():
        near[i][0].remove()
        taken.remove(near[i][1])
    columns = list[list[int]]()
    for i in sorted(crowd, key=lambda i: across[i]):
        if columns and across[i] - across[columns[-1][-1]] < COLUMN:
            columns[-1].append(i)
        else:
            columns.append([i])
    low, high = axes.bbox.intervaly * 72.0 / axes.figure.dpi
    for column in columns:
        column.sort(key=lambda i: up[i])
        for i, line in zip(column, _lines(up[column], low, high), strict=True):
            in_line = [(x, line - up[i]) for x in (-FAR, FAR)]
            _label(axes, picture.places[i], (*in_line, *NEAR, *WIDE), taken)


def _lines(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Ascending values, moved as little as possible to be a `LINE` apart and between `low` and `high` (N,)."""
    steps = LINE * (np.arange(len(values)) + 0.5)
    return isotonic_regression(values - steps).x.clip(low, max(low, high - LINE * len(values))) + steps


def _label(
    axes: Axes, place: Place, offsets: Iterable[tuple[float, float]], taken: list[Bbox]
) -> tuple[Annotation, Bbox] | None:
    """A place's name at the first of the offsets (points) where it covers nothing; None if there is none."""
    for x, y in offsets:
        name = axes.annotate(plain(place.label), (place.x, place.y), (x, y), textcoords="offset points", va="center")
        name.set(ha="left" if x > 0 else "right" if x < 0 else "center", fontsize=LETTERS, in_layout=False, zorder=2.5)
        name.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8})  # no line strikes it out
        name.get_window_extent()  # puts it in its place; that of the text alone is without the line
        box = Text.get_window_extent(name).expanded(1.06, 1.0)  # a page has another font
        if not box.count_overlaps(taken) and _inside(axes.bbox, box):
            taken.append(box)
            if (x, y) not in NEAR:  # joined by a line
                line = {"arrowstyle": "-", "color": INK, "alpha": 0.35, "linewidth": 0.6, "shrinkB": 4.0}
                axes.annotate("", (place.x, place.y), (x, y), textcoords="offset points", arrowprops=line)
            return name, box
        name.remove()
    return None


def _around(axes: Axes, x: float, y: float, half: float) -> Bbox:
    across, up = axes.transData.transform((x, y))
    return Bbox.from_extents(across - half, up - half, across + half, up + half)


def _inside(outer: Bbox, box: Bbox) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
