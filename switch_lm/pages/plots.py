"""How the series of a picture become lines, points, bars and intervals on one pair of axes."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from switch_lm.pages.characters import harmless
from switch_lm.pages.document import Picture, Series
from switch_lm.pages.hover import add_targets

INK, PAPER = "#1b1b1f", "#ffffff"  # a page replaces these two by its own
# Okabe and Ito's colours; the light ones are darkened or left out, so that each can be seen on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", INK, "#C08200", "#3A98CF")
MARKERS, LINES = "os^DvPXh<>pd*", ("-", "--", ":", "-.")  # 7 colours and 13 markers, in step: 91 that differ
ROW = 12.0  # points: the height of a row with a name
MOST_MARKERS, LINE_LENGTH = 15, 56  # on a line: more would hide it; characters across a picture
Entries = list[tuple[Any, str]]  # of the legend: what is drawn, and its name


def plain(text: str) -> str:
    """The text on one line; backquotes have no meaning in a picture."""
    return harmless(re.sub(r"[\x00-\x20\x7f`]+", " ", text).strip())


def wrapped(text: str, length: int = LINE_LENGTH) -> str:
    """The plain text in lines of at most that many characters."""
    return fill(plain(text), length)


def draw_series(figure: Figure, picture: Picture) -> None:
    """Draws all series, the ticks, and a legend below them; the layout of the figure is constrained."""
    axes, entries = figure.add_subplot(), Entries()
    axes.set(xlabel=wrapped(picture.x_label), ylabel=wrapped(picture.y_label, 36))
    for series in picture.series:
        entries += _draw(axes, picture, series, first=len(entries))
    set_ticks(axes, x_log=picture.x_log, x_names=picture.x_names)
    add_legend(figure, entries)


def draw_rows(figure: Figure, picture: Picture) -> float:
    """Draws dots in rows with a name each, and a legend below them; the height of the axes in points."""
    axes, entries = figure.add_subplot(), Entries()
    axes.axvline(0.0, color=INK, linewidth=0.9)
    for n, series in enumerate(picture.series):
        nothing = (math.nan,) * len(series.x)
        y, low, high = np.array([series.y, series.low or nothing, series.high or nothing], dtype=float)
        look: dict[str, Any] = {"color": COLOURS[n], "fmt": MARKERS[n], "markersize": 4.5, "capsize": 2.0}
        entries.append((axes.errorbar(y, series.x, xerr=[y - low, high - y], **look), series.label))
    axes.set(xlabel=wrapped(picture.y_label, 36), ylim=(len(picture.x_names) - 0.5, -0.5))
    axes.set_yticks(range(len(picture.x_names)), [plain(name) for name in picture.x_names], fontsize=ROW * 0.65)
    axes.xaxis.set(major_locator=MaxNLocator(6), major_formatter=short)
    add_legend(figure, entries)
    return ROW * len(picture.x_names)


def add_legend(figure: Figure, entries: Entries, *, size: float = 1.0) -> None:
    """Below the axes, its letters `size` times as large as others; none for a single entry."""
    if len(entries) > 1:
        names = [wrapped(name) for _, name in entries]
        names = [f" {name}" if name.startswith("_") else name for name in names]  # matplotlib would leave it out
        columns = max(1, min(4, int(LINE_LENGTH / size) // (max(map(len, names)) + 6)))
        drawn, look = [drawn for drawn, _ in entries], {"fontsize": 10.0 * size, "ncols": columns}
        figure.legend(drawn, names, loc="outside lower left", **look)


def _draw(axes: Axes, picture: Picture, series: Series, *, first: int) -> Entries:
    """One series; `first`: how many entries there are already. Each labelled point is an entry."""
    colour, width = COLOURS[first % len(COLOURS)], 0.8 / len(picture.series)
    nothing = (math.nan,) * len(series.x)
    data = np.array([series.x, series.y, series.low or nothing, series.high or nothing], dtype=float)
    x, y, low, high = np.where(np.isfinite(data), data, math.nan)  # what is not finite is a gap
    if picture.x_names:
        x += (first - (len(picture.series) - 1) / 2) * width
    if series.line and not picture.x_names:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    else:
        axes.errorbar(x, (low + high) / 2, yerr=(high - low) / 2, fmt="none", ecolor=INK, capsize=2.5, zorder=1.9)
    add_targets(axes, _targets(picture, series, x, y))
    if picture.x_names:  # the edge shows a bar of no height
        return [(axes.bar(x, y, width, color=colour, edgecolor=colour), series.label)]
    look: dict[str, Any] = {"linestyle": LINES[first % len(LINES)] if series.line else "", "markersize": 6.5}
    look["markevery"] = max(1, math.ceil(len(x) / MOST_MARKERS)) if series.line else 1
    groups = [(series.label, slice(None))]
    if series.labels:
        axes.plot(x, y, linestyle=look["linestyle"], color=colour)
        of = f"{series.label}: " if len(picture.series) > 1 else ""
        names = [name if series.label in name else of + name for name in series.labels]
        groups = [(name, slice(n, n + 1)) for n, name in enumerate(names)]
    entries = Entries()
    for n, (name, points) in enumerate(groups, first):
        look |= {"color": colour if series.line else COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}
        entries.append((axes.plot(x[points], y[points], **look)[0], name))
    return entries


def _targets(
    picture: Picture, series: Series, x: Iterable[float], y: Iterable[float]
) -> Iterator[tuple[float, float, str]]:
    """What each point says under the pointer; of a long line some, its last one always."""
    step = max(1, math.ceil(len(series.x) / MOST_MARKERS)) if series.line and not picture.x_names else 1
    names = series.labels or [series.label] * len(series.x)
    points = list(zip(x, y, series.x, names, strict=True))[::-step]
    for at, height, value, name in points:
        place = picture.x_names[int(value)] if picture.x_names else f"{plain(picture.x_label)} {short(value, None)}"
        yield at, height, plain(f"{name}: {height:.5g} at {place}")


def set_ticks(axes: Axes, *, x_log: bool = False, x_names: Sequence[str] = ()) -> None:
    """Few ticks, at round numbers, or a name below each group of bars."""
    axes.yaxis.set_major_formatter(short)
    if x_names:
        axes.set_xticks(range(len(x_names)), [wrapped(name, max(6, 60 // len(x_names))) for name in x_names])
        return
    axes.set_xscale("log" if x_log else "linear")
    low, high = axes.get_xlim()
    decades = math.log10(high / low) if x_log else 0.0
    whole = all(float(x).is_integer() for line in axes.lines for x in np.asarray(line.get_xdata()))
    few = LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)) if decades > 1 else MaxNLocator(6, integer=whole)
    axes.xaxis.set(major_locator=few, major_formatter=short, minor_formatter=NullFormatter())


def short(value: float, _: object) -> str:
    """The number as it is, with a unit from 10k on."""
    return EngFormatter(sep="")(value) if abs(value) >= 1e4 else f"{round(value, 12) + 0.0:g}".replace("-", "−")
