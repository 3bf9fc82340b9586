"""How a picture of a document becomes a figure, two files or a part of a page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from switch_lm.pages.document import Picture
from switch_lm.pages.inline_svg import inline
from switch_lm.pages.picture_axes import WIDTH, lay_out, scale
from switch_lm.pages.picture_marks import INK, PAPER, draw_front, draw_series, name_points, plain

# No pyplot: it keeps every figure, needs to be told of the missing display and remembers the last caller's settings.
STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "font.size": 10.0,
    "text.color": INK,
    "text.hinting": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
}


def draw(picture: Picture, *, title: bool = True) -> Figure:
    """The picture on a figure of its own, 384 points wide with its title, 360 without, and as high as it needs."""
    with _style(picture):
        figure = Figure(figsize=(WIDTH / 72, WIDTH / 72), dpi=72)  # a pixel is a point
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        scale(axes, picture)
        handles = [draw_series(axes, picture, i) for i in range(len(picture.series))] + draw_front(axes, picture)
        lay_out(axes, picture, handles, title=title)
        name_points(axes, picture)
    return figure


def save(picture: Picture, folder: Path) -> None:
    """Writes NAME.png, at twice a screen's resolution, and NAME.svg, both on white: the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, buffer = draw(picture), io.BytesIO()
    with _style(picture):
        figure.savefig(buffer, format="png", dpi=160, facecolor=PAPER)
    few = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)  # a third of the bytes
    few.save(folder / f"{picture.name}.png", optimize=True)
    (folder / f"{picture.name}.svg").write_text(_svg(figure, picture), encoding="utf-8", newline="\n")


def as_inline_svg(picture: Picture) -> str:
    """The picture without its title, for a page: transparent, in the page's colours and as wide as there is room."""
    figure = draw(picture, title=False)
    figure.patch.set_visible(False)
    figure.axes[0].patch.set_visible(False)
    colours = {INK: "currentColor", PAPER: "var(--paper, #fff)"}
    return inline(_svg(figure, picture), name=picture.name, alt=plain(picture.alt), colours=colours)


def _svg(figure: Figure, picture: Picture) -> str:
    buffer = io.StringIO()
    about = {"Date": None, "Creator": None, "Title": plain(picture.title), "Description": plain(picture.alt)}
    with _style(picture):
        figure.savefig(buffer, format="svg", facecolor=PAPER, metadata=about)
    return buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


@contextmanager
def _style(picture: Picture) -> Iterator[None]:
    """matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    style = {**STYLE, "svg.hashsalt": picture.name}
    with matplotlib.style.context(style, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a name in another script
        yield
