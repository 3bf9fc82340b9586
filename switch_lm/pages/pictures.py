"""How a picture of a document becomes a figure, two files, an image or a part of a page."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Any

import switch_lm.pages.quiet_matplotlib  # noqa: F401  before all of matplotlib

# isort: split
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from switch_lm.pages.document import Drawn, HeatMap, Scatter
from switch_lm.pages.heat_map import draw_heat_map, values_of
from switch_lm.pages.hover import part_targets, with_titles
from switch_lm.pages.plots import INK, PAPER, draw_rows, draw_series, plain, wrapped
from switch_lm.pages.scatter import add_labels, draw_scatter

WIDTH, HEIGHT = 5.2, 220.0  # of a picture in inches, narrow enough for a phone; of the axes in points
SCREEN_DPI, FILE_DPI = 120, 160
STYLE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.13,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "switch_lm",  # the same identifiers each time
}


def draw(picture: Drawn) -> Figure:
    """The picture on a figure of its own; its axes have a fixed height, and the figure is as high as it has to be."""
    with _style():  # no pyplot: it keeps every figure and the last caller's settings
        layout, height = ConstrainedLayoutEngine(hspace=0), HEIGHT
        figure = Figure(figsize=(WIDTH, 40.0), dpi=72, layout=layout)  # a pixel is a point
        figure.suptitle(wrapped(picture.title, 44), x=0.02, ha="left", fontweight="bold")
        if isinstance(picture, HeatMap):
            height = draw_heat_map(figure, picture)
        elif isinstance(picture, Scatter):
            draw_scatter(figure, picture)
        elif picture.sideways:
            height = draw_rows(figure, picture)
        else:
            draw_series(figure, picture)
        layout.execute(figure)  # what stands around the axes takes the same room at any height
        drawn = sum(axes.bbox.height for axes in figure.axes)
        figure.set_figheight(figure.get_figheight() + (height - drawn) / 72)
        layout.execute(figure)
        figure.set_layout_engine("none")  # the layout is settled: this makes all that follows quick
        for axes in figure.axes:
            part_targets(axes)
        if isinstance(picture, Scatter):
            add_labels(figure.axes[0], picture)
    return figure


def files_of(picture: Drawn, *, svg: bool = True) -> dict[str, bytes]:
    """NAME.png, at twice a screen's resolution, and NAME.svg, both on white: the same bytes each time."""
    files = {f"{picture.name}.png": _png_and_svg(picture)[0]}
    if svg:
        about = {"Date": None, "Creator": None, "Title": plain(picture.title), "Description": plain(picture.alt)}
        files[f"{picture.name}.svg"] = with_titles(_file(draw(picture), "svg", metadata=about).decode()).encode()
    return files


@lru_cache(maxsize=128)  # a page shows what the files show: drawn once
def _png_and_svg(picture: Drawn) -> tuple[bytes, str]:
    """A PNG, and a transparent SVG without the title."""
    figure, png = draw(picture), io.BytesIO()
    image = Image.open(io.BytesIO(_file(figure, "png", dpi=FILE_DPI))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(png, "png", optimize=True)  # a third of the bytes
    (title,) = figure.texts
    title.set_visible(False)
    return png.getvalue(), with_titles(_file(figure, "svg", transparent=True, pad_inches=0).decode())


def as_image(heat_map: HeatMap) -> NDArray[np.uint8]:
    """The map on white: height x width x RGB. One that differs in numbers alone takes a fraction of the time."""
    alike = re.sub(r"\d", "0", heat_map.title)  # of another layer, say: as wide
    figure, canvas, background = _empty(replace(heat_map, values=(), title=alike))
    (title,) = figure.texts
    title.set_text(wrapped(heat_map.title, 44))
    canvas.restore_region(background)
    for axes, values in zip(figure.axes[:-1], values_of(heat_map), strict=True):
        axes.images[0].set_data(values)
        for part in (axes.images[0], *axes.spines.values()):
            axes.draw_artist(part)
    figure.draw_artist(title)
    return np.array(canvas.buffer_rgba())[..., :3]


@lru_cache(maxsize=8)
def _empty(heat_map: HeatMap) -> tuple[Figure, Any, Any]:
    """A map without numbers, and what it looks like without its title."""
    figure = draw(heat_map)
    figure.set_dpi(SCREEN_DPI)
    figure.texts[0].set_animated(True)  # left out of the background
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib gives its methods no types
    with _style():
        canvas.draw()
    return figure, canvas, canvas.copy_from_bbox(figure.bbox)


def as_inline_svg(picture: Drawn) -> str:
    """The picture without its title, as one `<svg>` that takes its width, font and colours from the page around it."""
    _, svg = _png_and_svg(picture)
    svg = re.sub(
        r"<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )  # styles: for all the page
    prefix, box = re.sub(r"\W", "-", picture.name), re.findall(r'viewBox="[^"]*"', svg)[0]
    svg = f'<svg {box} role="img" aria-label="{escape(plain(picture.alt))}"' + svg[svg.index(">") :].replace(
        "xlink:", ""
    )
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace("'DejaVu Sans'", "var(--sans)")


def _file(figure: Figure, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=kind, bbox_inches="tight", **how)  # tight: whatever is too wide is not cut
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a name in another script
        yield
