"""How a picture of a document becomes a figure, two files or a part of a page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from switch_lm.pages.document import HeatMap, Picture
from switch_lm.pages.heat_map import colours, draw_heat_map
from switch_lm.pages.inline_svg import inline
from switch_lm.pages.picture_axes import WIDTH, lay_out, scale
from switch_lm.pages.picture_marks import INK, PAPER, draw_front, draw_series, name_points, plain

SCREEN_DPI, FILE_DPI = 120, 160
# No pyplot: it keeps every figure, needs to be told of the missing display and remembers the last caller's settings.
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "font.size": 10.0,
    "text.color": INK,
    "text.hinting": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
}


def draw(picture: Picture | HeatMap, *, title: bool = True) -> Figure:
    """The picture on a figure of its own, 384 points wide with its title, 360 without, and as high as it needs."""
    with _style(picture):
        figure = Figure(figsize=(WIDTH / 72, WIDTH / 72), dpi=72)  # a pixel is a point
        FigureCanvasAgg(figure)
        if isinstance(picture, HeatMap):
            draw_heat_map(figure, picture, title=title)
            return figure
        axes = figure.add_axes((0, 0, 1, 1))
        scale(axes, picture)
        handles = [draw_series(axes, picture, i) for i in range(len(picture.series))] + draw_front(axes, picture)
        lay_out(axes, picture, handles, title=title)
        name_points(axes, picture)
    return figure


def save(picture: Picture | HeatMap, folder: Path) -> None:
    """Writes NAME.png, at twice a screen's resolution, and NAME.svg, both on white: the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(picture)
    shades = 256 if isinstance(picture, HeatMap) else 128
    few = _on_white(figure, picture, dpi=FILE_DPI).quantize(shades, dither=Image.Dither.NONE)  # a third of the bytes
    few.save(folder / f"{picture.name}.png", optimize=True)
    (folder / f"{picture.name}.svg").write_text(_svg(figure, picture), encoding="utf-8", newline="\n")


def as_image(heat_map: HeatMap) -> NDArray[np.uint8]:
    """The map on white: height x width x RGB.

    What the cells stand in is drawn once and kept: another map that differs in its numbers alone takes milliseconds.
    """
    empty, (top, bottom, left, right) = _empty(replace(heat_map, values=()))
    image, values = empty.copy(), np.array(heat_map.values, dtype=float)
    if values.size == 0:
        return image
    colour_of, norm = colours(heat_map)
    cells = colour_of(norm(np.ma.masked_invalid(values)), bytes=True)
    row = np.arange(bottom - top) * values.shape[0] // (bottom - top)
    column = np.arange(right - left) * values.shape[1] // (right - left)
    pixels = cells[row][:, column]
    there = pixels[..., 3] > 0
    image[top:bottom, left:right][there] = pixels[there][:, :3]
    return image


@lru_cache(maxsize=8)
def _empty(heat_map: HeatMap) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """A map without numbers, and where they go: from and to which line, from and to which column of pixels."""
    figure = draw(heat_map)
    image = np.array(_on_white(figure, heat_map, dpi=SCREEN_DPI))
    box = figure.axes[0].get_position()
    height, width, _ = image.shape
    edges = (1 - box.y1) * height, (1 - box.y0) * height, box.x0 * width, box.x1 * width
    top, bottom, left, right = map(round, edges)
    return image, (top, bottom, left, right)


def as_inline_svg(picture: Picture | HeatMap) -> str:
    """The picture without its title, for a page: transparent, in the page's colours and as wide as there is room."""
    figure = draw(picture, title=False)
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    of_page = {INK: "currentColor", PAPER: "var(--paper, #fff)"}
    return inline(_svg(figure, picture), name=picture.name, alt=plain(picture.alt), colours=of_page)


def _on_white(figure: Figure, picture: Picture | HeatMap, *, dpi: int) -> Image.Image:
    buffer = io.BytesIO()
    with _style(picture):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, pil_kwargs={"compress_level": 1})
    return Image.open(buffer).convert("RGB")


def _svg(figure: Figure, picture: Picture | HeatMap) -> str:
    buffer = io.StringIO()
    about = {"Date": None, "Creator": None, "Title": plain(picture.title), "Description": plain(picture.alt)}
    with _style(picture):
        figure.savefig(buffer, format="svg", facecolor=PAPER, metadata=about)
    return buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


@contextmanager
def _style(picture: Picture | HeatMap) -> Iterator[None]:
    """matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    style = {**STYLE, "svg.hashsalt": picture.name}
    with matplotlib.style.context(style, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a name in another script
        yield
