"""Pictures: the same bytes each time, nothing cut or covered, and a drawing that fits into a page."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from test_heat_map import MAP, save

from switch_lm.pages.document import Drawn, Picture, Place, Scatter, Series
from switch_lm.pages.hover import LEAST, REACH
from switch_lm.pages.pictures import FILE_DPI, HEIGHT, WIDTH, as_inline_svg, draw
from switch_lm.pages.plots import COLOURS, INK, MARKERS, MOST_MARKERS, ROW
from switch_lm.pages.scatter import LINE, NO_LIMIT, SCALE, _lines

X = (1.0, 2.0, 4.0, 8.0)
Y = (2.0, 1.7, 1.6, 1.58)
LABELS = ("cf 0.5", "cf 1", "cf 1.25", "cf 2")
POINTS = Series("runs", X, Y, tuple(y - 0.05 for y in Y), tuple(y + 0.05 for y in Y), LABELS, line=False)
CURVE = Series("loss", X, Y, tuple(y - 0.05 for y in Y), tuple(y + 0.05 for y in Y))
PLACES = tuple(
    Place(name, kind, level, f"group {name}", x, y, ((x, y), (x, y + 0.02)), front, f"{name}: {y} nats")
    for name, kind, level, x, y, front in (
        ("dense", "dense", None, 2.0, 1.5, True), ("dropless", "Switch", math.inf, 2.1, 1.6, False),
        ("factor 2.0", "Switch", 2.0, 3.0, 1.55, False), ("factor 1.0", "Switch", 1.0, 2.1, 1.7, False),
        ("factor 0.5", "Switch", 0.5, 1.0, 1.9, True),
    )
)  # fmt: skip
SCATTER = Scatter("frontier", "What it buys", "Loss falls with work.", "TFLOP", "loss", PLACES)
BARS = replace(CURVE, x=(0.0, 1.0, 2.0, 3.0))
NAMED = ("half", "one", "two", "four")
PICTURE = Picture("frontier", "What it buys", "Loss falls with time.", "ms per step", "loss", (POINTS,))
KINDS: dict[str, Any] = {
    "points": PICTURE,
    "lines": replace(PICTURE, series=tuple(replace(CURVE, label=f"run {i}") for i in range(9))),
    "bars": replace(PICTURE, series=(BARS, replace(BARS, y=(0.0, -0.5, math.nan, 1.0))), x_names=NAMED),
    "log": replace(PICTURE, series=(replace(CURVE, x=(0.0, 100.0, 1e4, 1e6)),), x_log=True),
    "gaps": replace(PICTURE, series=(replace(POINTS, y=(math.nan, 1.7, math.inf, 1.6)),)),
    "one point": replace(PICTURE, series=(Series("a", (3.0,), (1.0,), labels=("a",), line=False),), x_log=True),
    "rows": replace(
        PICTURE,
        x_names=(*(f"the-name-of-play-{n}" for n in range(38)), "all"),
        sideways=True,
        y_label="nats per character, and some more words on what an interval is",
        series=(BARS, replace(BARS, x=(38.0, 5.0, 4.0, 7.0), low=None, high=None)),
    ),
    "scatter": SCATTER,
    "nothing": replace(PICTURE, series=(Series("a", (), ()),)),
    "odd names": replace(PICTURE, title="$x$ <b> & 猫 " * 9, series=(replace(POINTS, label="a\x00`$_<&>" * 9),)),
}


def legend_of(picture: Drawn) -> list[str]:
    """The entries of the legend."""
    return [text.get_text().strip() for legend in draw(picture).legends for text in legend.get_texts()]


@pytest.mark.parametrize("picture", KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_is_saved_and_shown(picture: Drawn, tmp_path: Path) -> None:
    save(picture, tmp_path / "new")
    with Image.open(tmp_path / "new" / "frontier.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert 0.95 < image.width / (WIDTH * FILE_DPI) < 1.05
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 3
    ElementTree.parse(tmp_path / "new" / "frontier.svg")
    ElementTree.fromstring(as_inline_svg(picture))


def test_the_same_picture_is_the_same_bytes_in_another_process_whatever_its_settings(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from switch_lm.pages.pictures import matplotlib\n"
        "matplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'red', 'lines.linewidth': 9})\n"
        "from test_heat_map import MAP; from test_pictures import *\n"
        "for one in (PICTURE, MAP): save(one, Path(sys.argv[2])); print(as_inline_svg(one), end='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams['font.size'] == 30\n"
    )
    for one in (PICTURE, MAP):
        save(one, tmp_path / "here")
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "there")]
    env = os.environ | {"MPLCONFIGDIR": os.devnull}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    assert done.stdout == as_inline_svg(PICTURE) + as_inline_svg(MAP)
    for name in ("frontier.png", "frontier.svg", "loads.png", "loads.svg"):
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


@pytest.mark.parametrize("colour", [colour for colour in (*COLOURS, *SCALE, NO_LIMIT) if colour != INK])
@pytest.mark.parametrize("ground", ["#ffffff", "#fdfcf9", "#16171a"])
def test_each_colour_is_seen_on_white_and_on_dark(colour: str, ground: str) -> None:
    darker, lighter = sorted((luminance(colour), luminance(ground)))
    assert (lighter + 0.05) / (darker + 0.05) > 2.9


def test_series_and_labelled_points_differ_in_marker_and_in_colour() -> None:
    points = replace(POINTS, x=X * 4, y=Y * 4, low=None, high=None, labels=tuple(map(str, range(16))))
    for picture, count in ((KINDS["lines"], 9), (replace(PICTURE, series=(points,)), 16)):
        lines = draw(picture).axes[0].lines
        looks = [(line.get_color(), line.get_marker()) for line in lines if str(line.get_marker()) in MARKERS]
        assert len(looks) == len(set(looks)) == count
        assert all(before[0] != after[0] and before[1] != after[1] for before, after in pairwise(looks))


@pytest.mark.parametrize("labels", [None, LABELS])
def test_points_are_joined_if_they_are_a_line_and_not_otherwise(labels: tuple[str, ...] | None) -> None:
    for joined, styles in ((True, {"-"}), (False, set[str]())):
        series = replace(POINTS, line=joined, labels=labels, low=None, high=None)
        lines = [
            line
            for line in draw(replace(PICTURE, series=(series,))).axes[0].lines
            if len(np.asarray(line.get_xydata())) > 1
        ]
        assert {line.get_linestyle() for line in lines} - {"None"} == styles


def test_the_legend_names_each_labelled_point_with_its_series_where_that_says_more() -> None:
    dense = Series("dense", (3.0,), (1.65,), labels=("dense, d_ff 4",), line=False)
    assert legend_of(KINDS["gaps"]) == list(LABELS)
    names = [f"runs: {label}" for label in LABELS]
    assert legend_of(replace(PICTURE, series=(POINTS, dense))) == [*names, "dense, d_ff 4"]
    assert legend_of(replace(PICTURE, series=(replace(CURVE, label="_a"), CURVE))) == ["_a", "loss"]
    assert legend_of(replace(PICTURE, series=(CURVE,))) == []


def test_an_interval_is_a_band_along_a_line_and_a_bar_through_a_point_from_its_low_to_its_high_end() -> None:
    low, high = tuple(y - 0.1 for y in Y), tuple(y + 0.3 for y in Y)
    spans = np.array(list(zip(low, high, strict=True)))
    line = replace(CURVE, low=low, high=high)
    for series, names in ((replace(line, line=False), ()), (replace(line, x=BARS.x), NAMED)):
        (bars,) = draw(replace(PICTURE, series=(series,), x_names=names)).axes[0].collections
        assert np.array([path.vertices for path in bars.get_paths()])[:, :, 1] == pytest.approx(spans)
    (band,) = draw(replace(PICTURE, series=(line,))).axes[0].collections
    assert {*low, *high} <= set(np.asarray(band.get_paths()[0].vertices)[:, 1].tolist())


def test_rows_have_their_names_from_the_top_and_intervals_across() -> None:
    axes: Any = draw(KINDS["rows"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(KINDS["rows"].x_names)
    assert axes.transData.transform((0, 0))[1] > axes.transData.transform((0, 38))[1]
    across = np.array([path.vertices for path in axes.collections[0].get_paths()])
    assert BARS.low and BARS.high
    assert across == pytest.approx(
        np.array([[[a, x], [b, x]] for x, a, b in zip(BARS.x, BARS.low, BARS.high, strict=True)])
    )


def test_bars_stand_on_zero_side_by_side_and_one_of_no_height_is_a_line() -> None:
    bars: Any = draw(replace(PICTURE, series=(BARS, replace(BARS, y=(0.0,) * 4)), x_names=NAMED)).axes[0].patches
    places = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) for bar in bars]
    assert places == [pytest.approx((x - 0.2, 0.0, y)) for x, y in enumerate(Y)] + [
        pytest.approx((x + 0.2, 0.0, 0.0)) for x in range(4)
    ]
    assert all(bar.get_linewidth() > 0 and bar.get_edgecolor() == bar.get_facecolor() for bar in bars)


def test_a_scatter_has_a_dot_for_each_run_a_colour_for_each_level_and_the_front_joined_from_left_to_right() -> None:
    axes: Any = draw(SCATTER).axes[0]
    seen = [line for line in axes.lines if line.get_alpha() != 0.0]
    dots = [np.asarray(line.get_xydata()).tolist() for line in seen if line.get_marker() == "."]
    assert dots == [[list(run) for run in place.runs] for place in PLACES]
    colours = [line.get_color() for line in seen if line.get_marker() in ("o", "s")]
    assert colours == [INK, NO_LIMIT, SCALE[-1].lower(), SCALE[2].lower(), SCALE[0].lower()]
    (front,) = [line for line in seen if line.get_linestyle() == "--"]
    assert np.asarray(front.get_xydata()).tolist() == [[1.0, 1.9], [2.0, 1.5]]
    assert legend_of(SCATTER) == [*dict.fromkeys(place.group for place in PLACES), "not dominated"]


def test_names_of_a_crowded_column_are_a_line_apart_where_their_marks_are_and_stay_inside() -> None:
    """Of marks at 50, 50 and 200 the first two move by half a line each; at the lower edge all begin there."""
    values = np.array([50.0, 50.0, 200.0])
    assert _lines(values, 0.0, 300.0) == pytest.approx([50.0 - LINE / 2, 50.0 + LINE / 2, 200.0])
    assert _lines(values - 60.0, 0.0, 300.0) == pytest.approx([LINE / 2, 1.5 * LINE, 140.0])


def test_labels_of_a_scatter_cover_neither_each_other_nor_a_mark_and_are_left_out_where_there_is_no_room() -> None:
    def boxes(picture: Scatter) -> dict[str, Any]:
        axes = draw(picture).axes[0]
        return {text.get_text(): Text.get_window_extent(text) for text in axes.texts if text.get_text()}

    assert set(boxes(SCATTER)) == {place.label for place in PLACES}
    crowd = tuple(replace(PLACES[0], label=f"a long name {n}", x=1.0 + n / 1000, runs=((1.0, 1.9),)) for n in range(60))
    shown = boxes(replace(SCATTER, places=crowd))
    assert 3 < len(shown) < 60
    assert not any(a.overlaps(b) for a, b in combinations(shown.values(), 2))


def test_each_point_says_its_value_under_the_pointer() -> None:
    def titles(picture: Drawn) -> list[str]:
        root = ElementTree.fromstring(as_inline_svg(picture))
        return [str(element.text) for element in root.iter() if element.tag.endswith("title")]

    one = "dense: 1.5000, one seed"
    assert titles(SCATTER).count(one) == 1 and titles(SCATTER)[-5:] == [place.hover for place in PLACES]
    assert (
        titles(PICTURE)
        == [f"{name}: {y:.5g} at ms per step {x:g}" for name, x, y in zip(LABELS, X, Y, strict=True)][::-1]
    )
    assert titles(KINDS["bars"])[:4] == [f"loss: {y:.5g} at {name}" for name, y in zip(NAMED, Y, strict=True)][::-1]
    long = replace(CURVE, label="<a & b>", x=tuple(map(float, range(1000))), y=(1.0,) * 1000, low=None, high=None)
    assert titles(replace(PICTURE, series=(long,)))[0] == "<a & b>: 1 at ms per step 999"
    assert len(titles(replace(PICTURE, series=(long,)))) <= MOST_MARKERS


def test_in_a_crowd_no_point_lies_under_the_place_that_shows_another_and_alone_it_is_easily_met() -> None:
    crowd = tuple(replace(PLACES[0], label=f"{n}", x=1.0 + n / 60, runs=((1.0 + n / 60, 1.9),)) for n in range(9))
    axes = draw(replace(SCATTER, places=(*crowd, replace(PLACES[0], x=2.0, runs=((2.0, 1.5),))))).axes[0]
    targets = [line for line in axes.lines if line.get_alpha() == 0.0]
    places = [axes.transData.transform(np.asarray(line.get_xydata())[0]) for line in targets]
    sizes = [float(line.get_markersize()) / 2 for line in targets]  # of this marker: twice its size across
    assert max(sizes) == REACH and LEAST < min(sizes) < REACH / 2
    for (i, a), (j, b) in combinations(enumerate(places), 2):
        apart = math.dist(a, b)
        assert apart == 0.0 or apart >= (sizes[i] + sizes[j]) / 2 - 1e-6


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # measuring, as `draw` does, 猫
@pytest.mark.parametrize("picture", KINDS.values(), ids=KINDS)
def test_nothing_is_covered_and_nothing_leaves_the_picture(picture: Drawn) -> None:
    figure = draw(picture)
    axes: Any = figure.axes[0]
    frame = figure.bbox.padded(0.5)
    title = [text.get_window_extent() for text in figure.texts]
    legends = [legend.get_window_extent() for legend in figure.legends]
    boxes = [*title, *legends, axes.get_tightbbox()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    ticks = [[label.get_window_extent() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)]
    assert not any(a.overlaps(b) for labels in ticks for a, b in combinations(labels, 2))
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    rows = len(picture.x_names) if isinstance(picture, Picture) and picture.sideways else 0
    height = ROW * rows or HEIGHT
    assert axes.bbox.height == pytest.approx(height, abs=1.0)  # whatever the title and the legend take


def test_what_is_too_wide_for_a_line_is_not_cut(tmp_path: Path) -> None:
    save(replace(PICTURE, title="W" * 60), tmp_path)
    with Image.open(tmp_path / "frontier.png") as image:
        pixels = np.asarray(image.convert("L"))
        assert image.width > WIDTH * FILE_DPI * 1.05 and pixels[:, :3].min() == pixels[:, -3:].min() == 255


def test_a_log_axis_has_plain_ticks_and_bars_have_names() -> None:
    log, bars = draw(KINDS["log"]).axes[0], draw(KINDS["bars"]).axes[0]
    assert {"100", "10k", "1M"} <= {label.get_text() for label in log.get_xticklabels()}
    assert [label.get_text() for label in bars.get_xticklabels()] == list(NAMED)


def test_inline_drawings_take_colours_and_font_from_the_page_and_share_no_identifier() -> None:
    alt = 'Falls \\n "fast" & <b>'
    first, second = as_inline_svg(replace(PICTURE, alt=alt)), as_inline_svg(replace(PICTURE, name="b c"))
    root = ElementTree.fromstring(first)
    assert root.attrib == {"viewBox": root.get("viewBox"), "role": "img", "aria-label": alt}
    assert "currentColor" in first and INK not in first.lower() and "DejaVu" not in first
    assert not {element.tag for element in root.iter()} & {"style", "metadata", "image"}
    assert PICTURE.title not in first
    assert ">cf 1.25</text>" in first
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in (first, second)]
    assert len(ids[0]) == len(set(ids[0])) > 0 and not set(ids[0]) & set(ids[1])
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(own)
