"""How the data of a picture is drawn: lines, points, bars, intervals, and the names of points."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from switch_lm.pages.document import Picture
from switch_lm.pages.point_labels import Box, Place, along, place_labels

INK, PAPER = "#1b1b1f", "#ffffff"  # the page replaces these two by its own
# Okabe and Ito's colours; the light ones are darkened or left out, so that each is seen on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", INK, "#C08200", "#3A98CF")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1.5)))
NOT_DOMINATED = "not dominated"
RING, LABEL_SIZE = 12.5, 9.5


@dataclass(frozen=True)
class Points:
    """A series where it is drawn: what is not finite is a gap, and bars of several series stand side by side."""

    x: list[float]
    y: list[float]
    spans: list[tuple[float, float, float]]  # x, low and high of each interval
    marked: list[Place]

    @classmethod
    def of(cls, picture: Picture, index: int) -> Points:
        """The points of series number `index`."""
        series, count = picture.series[index], len(picture.series)
        shift = (index - (count - 1) / 2) * 0.7 / count if picture.x_names else 0.0
        x = [value + shift for value in series.x]
        y = [value if math.isfinite(value) else math.nan for value in series.y]
        spans = zip(x, series.low or y, series.high or y, strict=True) if series.low or series.high else ()
        marked = [(a, b) for a, b, mark in zip(x, y, series.marked or (False,) * len(x), strict=True) if mark]
        return cls(x, y, [span for span in spans if all(map(math.isfinite, span))], marked)


def plain(text: str) -> str:
    """The text on one line; backquotes mean nothing in a picture."""
    return re.sub(r"[\x00-\x20\x7f`]+", " ", text).strip()


def draw_series(axes: Axes, picture: Picture, index: int) -> Artist:
    """Draws one series; its line and marker for the legend."""
    points, series = Points.of(picture, index), picture.series[index]
    joined = series.line and not picture.x_names
    colour = COLOURS[index % len(COLOURS)]
    if picture.x_names:
        width = 44 / (len(picture.x_names) * len(picture.series)) ** 0.5
        axes.vlines(points.x, 0, points.y, colors=colour, linewidth=width, alpha=0.3, zorder=2)
    _draw_spans(axes, points, colour, joined=joined)
    look: dict[str, Any] = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "markersize": 7.5}
    look |= {"markeredgecolor": PAPER, "markeredgewidth": 0.7, "linestyle": "none", "zorder": 4}
    look["clip_on"] = not picture.x_names  # a bar of no height is half a marker otherwise
    if joined:  # some thirty markers would hide the line
        every = max(1, math.ceil(len(points.x) / 15))
        look |= {"linestyle": DASHES[index % len(DASHES)], "linewidth": 1.7, "markersize": 5.5, "markevery": every}
    return axes.plot(points.x, points.y, label=plain(series.label), **look)[0]


def _draw_spans(axes: Axes, points: Points, colour: str, *, joined: bool) -> None:
    """A band along a line, a bar through a point."""
    if not points.spans:
        return
    x, low, high = ([span[i] for span in points.spans] for i in range(3))
    if joined:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0, zorder=2)
    else:
        axes.vlines(x, low, high, colors=colour, linewidth=1.4, zorder=3)
        axes.plot(x + x, low + high, linestyle="none", marker="_", markersize=6, color=colour, zorder=3)


def front(picture: Picture) -> list[Place]:
    """The points that are not dominated, of all series, from left to right."""
    marked = [place for i in range(len(picture.series)) for place in Points.of(picture, i).marked]
    return sorted(place for place in marked if math.isfinite(place[1]))


def draw_front(axes: Axes, picture: Picture) -> list[Artist]:
    """Rings the points that are not dominated and joins them; the entry of the legend, if there are any."""
    places = front(picture)
    if not places:
        return []
    look: dict[str, Any] = {"color": INK, "marker": "o", "markersize": RING, "markerfacecolor": "none"}
    look |= {"linestyle": (0, (4, 2.5)), "linewidth": 0.9, "markeredgewidth": 1.1, "label": NOT_DOMINATED}
    return [axes.plot(*zip(*places, strict=True), zorder=3.5, **look)[0]]


def name_points(axes: Axes, picture: Picture) -> None:
    """Writes the labels that there is room for, those of marked points first; a thin line leads to a far one."""
    found: list[tuple[bool, Place, str]] = []
    for i, series in enumerate(picture.series):
        points = Points.of(picture, i)
        for x, y, label in zip(points.x, points.y, series.labels or ("",) * len(points.x), strict=True):
            if math.isfinite(y) and label:
                found.append(((x, y) not in points.marked, (x, y), plain(label)))
    found.sort(key=lambda entry: entry[0])
    places, sizes = [_pixel(axes, at) for _, at, _ in found], [_size(axes, label) for *_, label in found]
    centres = place_labels(places, sizes, inside=Box(*axes.bbox.extents), obstacles=_obstacles(axes, picture))
    for (_, at, label), place, size, centre in zip(found, places, sizes, centres, strict=True):
        if centre:
            _write(axes, label, at, (centre[0] - place[0], centre[1] - place[1]), size)


def _write(axes: Axes, label: str, at: Place, offset: Place, size: Place) -> None:
    away = math.hypot(*(max(0.0, abs(o) - s / 2) for o, s in zip(offset, size, strict=True)))
    lead = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 6}
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": LABEL_SIZE}
    axes.annotate(label, at, offset, zorder=6, arrowprops=lead if away > 16 else None, **look)


def _size(axes: Axes, label: str) -> Place:
    """Width and height of the label and a little air around it."""
    probe = axes.text(0, 0, label, fontsize=LABEL_SIZE)
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width + 4, extent.height + 1


def _pixel(axes: Axes, place: Place) -> Place:
    x, y = axes.transData.transform(place)
    return float(x), float(y)


def _obstacles(axes: Axes, picture: Picture) -> list[Box]:
    """What a label should not cover: markers, intervals and lines."""
    boxes = along([_pixel(axes, place) for place in front(picture)])
    for i, series in enumerate(picture.series):
        points = Points.of(picture, i)
        places = [_pixel(axes, place) for place in zip(points.x, points.y, strict=True) if math.isfinite(place[1])]
        boxes += [Box.around(place, 9, 9) for place in places]
        boxes += [Box.around(_pixel(axes, place), RING, RING) for place in points.marked if math.isfinite(place[1])]
        if series.line:
            boxes += along(places)
        else:
            spans = [[_pixel(axes, (x, low)), _pixel(axes, (x, high))] for x, low, high in points.spans]
            boxes += [box for span in spans for box in along(span)]
    return boxes
