"""Pictures: the same bytes each time, nothing that overlaps, and a drawing that fits into a page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from PIL import Image

from switch_lm.pages.document import Picture, Series
from switch_lm.pages.picture_axes import WIDTH
from switch_lm.pages.picture_marks import COLOURS, INK, MARKERS, NOT_DOMINATED
from switch_lm.pages.pictures import as_inline_svg, draw, save
from switch_lm.pages.point_labels import Box, place_labels

X = (1.0, 2.0, 4.0, 8.0)
Y = (2.0, 1.7, 1.6, 1.58)
LABELS = ("cf 0.5", "cf 1", "cf 1.25", "cf 2")
POINTS = Series("runs", X, Y, tuple(y - 0.05 for y in Y), tuple(y + 0.05 for y in Y), LABELS, (True,) * 4, line=False)
CURVE = Series("loss", X, Y, tuple(y - 0.05 for y in Y), tuple(y + 0.05 for y in Y))
NAMED = ("half", "one", "two", "four")
PICTURE = Picture("frontier", "What it buys", "Loss falls with time.", "ms per step", "loss", (POINTS,))
KINDS = {
    "points": PICTURE,
    "lines": replace(PICTURE, series=tuple(replace(CURVE, label=f"run {i}") for i in range(9))),
    "bars": replace(PICTURE, series=(replace(CURVE, x=(0.0, 1.0, 2.0, 3.0)), CURVE), x_names=NAMED),
    "log": replace(PICTURE, series=(replace(CURVE, x=(0.0, 100.0, 1e4, 1e6)),), x_log=True),
    "gaps": replace(PICTURE, series=(replace(POINTS, y=(math.nan, 1.7, math.inf, 1.6)),)),
    "one point": replace(PICTURE, series=(Series("a", (3.0,), (1.0,), labels=("a",), line=False),), x_log=True),
    "nothing": replace(PICTURE, series=(Series("a", (), ()),)),
    "odd names": replace(PICTURE, title="$x$ <b> & 猫 " * 9, series=(replace(POINTS, label="a\x00`$_<&>" * 9),)),
}


def series_lines(figure: Figure, count: int) -> list[Line2D]:
    """The drawn lines of the series, by their labels in the legend."""
    return [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")][:count]


@pytest.mark.parametrize("picture", KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_is_saved_and_shown(picture: Picture, tmp_path: Path) -> None:
    save(picture, tmp_path / "new")
    with Image.open(tmp_path / "new" / "frontier.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert 2.0 < image.width / WIDTH < 2.6
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 3
    ElementTree.parse(tmp_path / "new" / "frontier.svg")
    ElementTree.fromstring(as_inline_svg(picture))


def test_the_same_picture_is_the_same_bytes_in_another_process_whatever_its_settings(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import matplotlib\n"
        "matplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'red', 'lines.linewidth': 9})\n"
        "from test_pictures import *; save(PICTURE, Path(sys.argv[2])); print(as_inline_svg(PICTURE), end='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams['font.size'] == 30\n"
    )
    save(PICTURE, tmp_path / "here")
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "there")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == as_inline_svg(PICTURE)
    for name in ("frontier.png", "frontier.svg"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save(PICTURE, tmp_path)
    assert dict(matplotlib.rcParams) == before


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour != INK])
@pytest.mark.parametrize("ground", ["#ffffff", "#fdfcf9", "#16171a"])
def test_each_colour_is_seen_on_white_and_on_dark(colour: str, ground: str) -> None:
    darker, lighter = sorted((luminance(colour), luminance(ground)))
    assert (lighter + 0.05) / (darker + 0.05) > 2.9


def test_series_differ_in_marker_and_line_as_well_as_in_colour() -> None:
    lines = series_lines(draw(KINDS["lines"]), 9)
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    assert len({line.get_marker() for line in lines}) == len(MARKERS)
    assert len({str(line.get_linestyle()) for line in lines[:2]}) == 2


def test_labels_lie_inside_the_axes_and_cover_neither_each_other_nor_a_point() -> None:
    crowd = tuple(1 + i / 40 for i in range(16))
    figure = draw(replace(PICTURE, series=(Series("a", crowd, crowd, labels=("crowded label",) * 16, line=False),)))
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert len(boxes) > 8
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
    assert not any(
        box.contains(*axes.transData.transform(point)) for box in boxes for point in zip(crowd, crowd, strict=True)
    )


def test_a_label_without_room_is_left_out() -> None:
    small = Box(0, 0, 30, 12)
    assert place_labels([(15, 6)], [(100, 10)], inside=small, obstacles=()) == [None]


def test_points_that_are_not_dominated_are_ringed_and_joined_across_series_from_left_to_right() -> None:
    dense = Series("dense", (3.0,), (1.65,), marked=(True,), line=False)
    marked = replace(POINTS, marked=(True, False, False, True))
    figure = draw(replace(PICTURE, series=(marked, dense)))
    front = next(line for line in figure.axes[0].lines if line.get_label() == NOT_DOMINATED)
    assert np.asarray(front.get_xydata()).tolist() == [[1.0, 2.0], [3.0, 1.65], [8.0, 1.58]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["runs", "dense", NOT_DOMINATED]


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # measuring, as `draw` does, 猫
@pytest.mark.parametrize("picture", KINDS.values(), ids=KINDS)
def test_the_legend_covers_nothing_and_nothing_leaves_the_picture(picture: Picture) -> None:
    figure = draw(picture)
    axes, frame = figure.axes[0], figure.bbox.padded(0.5)
    texts = [text.get_window_extent() for text in figure.texts if text.get_text()]
    legends = [legend.get_window_extent() for legend in figure.legends]
    ticks = [box for axis in (axes.xaxis, axes.yaxis) if (box := axis.get_tightbbox())]
    for legend in legends:
        assert legend.y0 > axes.bbox.y1
        assert not any(legend.overlaps(text) for text in texts)
    for box in (*texts, *legends, *ticks):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_a_log_axis_has_plain_ticks_and_bars_have_names() -> None:
    log, bars = draw(KINDS["log"]).axes[0], draw(KINDS["bars"]).axes[0]
    assert {"100", "10k", "1M"} <= {label.get_text() for label in log.get_xticklabels()}
    assert [label.get_text() for label in bars.get_xticklabels()] == list(NAMED)
    assert bars.get_ylim()[0] == 0


def test_inline_drawings_take_colours_and_width_from_the_page_and_share_no_identifier() -> None:
    first, second = as_inline_svg(PICTURE), as_inline_svg(replace(PICTURE, name="b c"))
    root = ElementTree.fromstring(first)
    assert root.attrib == {"viewBox": root.get("viewBox"), "role": "img", "aria-label": PICTURE.alt}
    assert "currentColor" in first and INK not in first.lower() and "font-family" not in first
    assert not {element.tag for element in root.iter()} & {"style", "metadata", "title", "image"}
    assert PICTURE.title not in first
    assert ">cf 1.25</text>" in first
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) == own
