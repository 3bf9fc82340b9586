"""A cost against a loss: a dot for each run, a mark for each mean, the colour of how many slots its experts have."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from switch_lm.pages.document import Scatter
from switch_lm.pages.hover import add_targets
from switch_lm.pages.plots import INK, MARKERS, PAPER, Entries, add_legend, plain, set_ticks, wrapped

SCALE = ("#7B4FB5", "#B5439B", "#CC4678", "#D9622B", "#C98200")  # from the lowest level to the highest
NO_LIMIT = "#009E73"
MARK, DOT, LETTERS = 7.5, 3.0, 7.0  # points
NEAR = ((6.0, 0.0), (-6.0, 0.0), (0.0, 8.0), (0.0, -8.0))  # points from a mark to its name, tried in this order;
FAR = tuple((x, 9.0 * y) for y in (0, 1, -1, 2, -2, 3, -3, 4, -4) for x in (22.0, -22.0))  # then joined by a line


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
    """A name beside each mark, the front's first; one that would cover another, or a mark, is left out."""
    taken = [_around(axes, x, y, DOT / 2) for place in picture.places for x, y in place.runs]
    taken += [_around(axes, place.x, place.y, MARK / 2) for place in picture.places]
    for place in sorted(picture.places, key=lambda place: not place.front):
        for x, y in (*NEAR, *FAR):
            name = axes.annotate(
                plain(place.label), (place.x, place.y), (x, y), textcoords="offset points", va="center"
            )
            name.set(ha="left" if x > 0 else "right" if x < 0 else "center", fontsize=LETTERS, in_layout=False)
            name.get_window_extent()  # puts it in its place; that of the text alone is without the line
            box = Text.get_window_extent(name).expanded(1.06, 1.0)  # a page has another font
            if not box.count_overlaps(taken) and _inside(axes.bbox, box):
                taken.append(box)
                if (x, y) in FAR:
                    line = {"arrowstyle": "-", "color": INK, "alpha": 0.35, "linewidth": 0.6, "shrinkB": 4.0}
                    axes.annotate("", (place.x, place.y), (x, y), textcoords="offset points", arrowprops=line)
                break
            name.remove()


def _around(axes: Axes, x: float, y: float, half: float) -> Bbox:
    across, up = axes.transData.transform((x, y))
    return Bbox.from_extents(across - half, up - half, across + half, up + half)


def _inside(outer: Bbox, box: Bbox) -> bool:
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
