"""How a picture is laid out: its axes and ticks, the title, the legend and the names of the axes; all in points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill, wrap
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, LogLocator, MaxNLocator, ScalarFormatter

from switch_lm.pages.document import Picture
from switch_lm.pages.picture_marks import INK, plain

WIDTH, HEIGHT = 360.0, 220.0  # of the whole picture and of its axes; narrow, because it is read on phones too
MARGIN, OVERHANG = 12.0, 15.0  # around the whole picture; for the half of a tick's name that reaches past the axes
LINE_LENGTHS = (60, 52, 44, 36, 28, 20, 12)  # in characters, tried in turn: how wide they are is known once they stand
STEPS = [1, 2, 2.5, 5, 10]
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scale(axes: Axes, picture: Picture) -> None:
    """Light lines to read values by, and no more ink than that."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=INK, linewidth=0.9)
    axes.grid(axis="y" if picture.x_names else "both", color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=5, labelcolor=INK)
    if picture.x_log:
        axes.set_xscale("log")
    labelled = any(series.labels for series in picture.series)
    axes.margins(x=0.09 if labelled else 0.04, y=0.14 if labelled else 0.07)


def lay_out(axes: Axes, picture: Picture, handles: Sequence[Artist], *, title: bool) -> None:
    """From the top: title, legend, what y is, axes, ticks, what x is; the figure becomes as high as they are.

    With its title it stands alone and has a margin; without, it lines up with the text of a page.
    """
    _tick(axes, picture)
    figure, margin = axes.get_figure(root=True), MARGIN if title else 0.0
    assert figure
    heading = _text(figure, picture.title if title else "", va="top", fontsize=12.5, fontweight="bold")
    upright, across = _text(figure, picture.y_label, va="top", alpha=0.8), _text(figure, picture.x_label, alpha=0.8)
    legend = _legend(figure, handles) if len(handles) > 1 else None
    ticks, names = axes.xaxis.get_tightbbox(), axes.yaxis.get_tightbbox()
    bottom = margin + 3 + _height(across) + 6 + 5 + (ticks.height if ticks else 0)
    y_place = bottom + HEIGHT + 7 + _height(upright)
    legend_place = y_place + (legend.get_window_extent().height + 13 if legend else 0)
    title_place = legend_place + (_height(heading) + 9 if heading.get_text() else 0)
    width, height, left = WIDTH + 2 * margin, title_place + margin, margin + (names.width if names else 0) + 8
    figure.set_size_inches(width / 72, height / 72)
    right = margin + WIDTH - OVERHANG
    axes.set_position((left / width, bottom / height, (right - left) / width, HEIGHT / height))
    heading.set_position((margin / width, title_place / height))
    upright.set_position((margin / width, y_place / height))
    across.set(x=right / width, y=(margin + 3) / height, va="bottom", ha="right")
    if legend:
        legend.set_bbox_to_anchor((margin / width, legend_place / height), figure.transFigure)


def _text(figure: Figure, text: str, **look: Any) -> Text:
    """The text, in lines that are no longer than the picture is wide."""
    written = figure.text(0, 0, plain(text), **look)
    for length in LINE_LENGTHS:
        written.set_text("\n".join(wrap(plain(text), length)))
        if written.get_window_extent().width <= WIDTH:
            break
    return written


def _height(text: Text) -> float:
    return text.get_window_extent().height if text.get_text() else 0.0


def _legend(figure: Figure, handles: Sequence[Artist]) -> Legend:
    """The legend, above the axes, in as many columns as the width allows."""
    longest = LINE_LENGTHS[0]
    for columns, length in [(4, longest), (3, longest), (2, longest), *((1, length) for length in LINE_LENGTHS)]:
        legend = figure.legend(
            list(handles),
            [fill(str(handle.get_label()), length) for handle in handles],
            loc="upper left",
            ncols=min(columns, len(handles)),
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.8,
            handletextpad=0.6,
            columnspacing=1.4,
        )
        if legend.get_window_extent().width <= WIDTH or length == LINE_LENGTHS[-1]:
            break
        legend.remove()
    return legend


def _tick(axes: Axes, picture: Picture) -> None:
    """Few ticks, at round numbers, written out."""
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(_formatter(axes.get_ylim()))
    if picture.x_names:
        _tick_names(axes, picture)
        return
    low, high = axes.get_xlim()
    whole = all(float(x).is_integer() for series in picture.series for x in series.x)
    decades = math.log10(high / low) if picture.x_log else 0.0
    if decades > 1:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=whole))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, position: ""))
    axes.xaxis.set_major_formatter(_formatter((low, high), log=picture.x_log))


def _tick_names(axes: Axes, picture: Picture) -> None:
    """A name below each group of bars, which stand on zero."""
    width = max(6, 60 // len(picture.x_names))
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(picture.x_names)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: fill(plain(picture.x_names[round(value)]), width)))
    axes.set_xlim(-0.6, len(picture.x_names) - 0.4)
    if all(not y < 0 for series in picture.series for y in (*series.y, *(series.low or ()))):
        axes.set_ylim(bottom=0)


def _formatter(limits: tuple[float, float], *, log: bool = False) -> Formatter:
    """Numbers of equal length, or 20k and 5M in place of many noughts."""
    if log or max(map(abs, limits)) >= 20_000:
        return FuncFormatter(lambda value, position: _short(value))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def _short(value: float) -> str:
    """The number with a unit from 10k on."""
    size, unit = next(((size, unit) for size, unit in UNITS if abs(value) >= max(size, 1e4)), (1.0, ""))
    return f"{value / size:.6g}{unit}".replace("-", "−")
