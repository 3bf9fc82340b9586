"""Heat maps: the right colour in the right place on a fixed scale, names that can be read, and a place in documents."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from switch_lm.pages.document import Document, Drawn, HeatMap, Section
from switch_lm.pages.heat_map import SCALE, colours
from switch_lm.pages.markdown import to_markdown
from switch_lm.pages.page import to_html
from switch_lm.pages.pictures import SCREEN_DPI, as_image, as_inline_svg, draw, files_of

MAP = HeatMap(
    "loads", "Loads", "One falls.", "step", "expert", "share", ("0", "10", "20"), ("00", "01"),
    ((0.0, 0.5, 1.0), (math.nan, 1.0, 7.0)), 0.0, 1.0, note="A note.",
)  # fmt: skip
LOAD = replace(MAP, high=2.0, centre=1.0)
PAPER = (255, 255, 255)


def save(picture: Drawn, folder: Path) -> None:
    """Writes the picture's files to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of(picture).items():
        (folder / name).write_bytes(content)


def filled(rows: int, columns: int) -> HeatMap:
    """Every number there, named as layers and steps are."""
    names = tuple(f"{i:02d}" for i in range(rows)), tuple(str(10 * i) for i in range(columns))
    values = tuple(tuple(float((i + j) % 2) for j in range(columns)) for i in range(rows))
    return replace(MAP, y_names=names[0], x_names=names[1], values=values)


def cell_centres(heat_map: HeatMap) -> list[list[tuple[int, ...]]]:
    """The colour in the middle of each cell of the image."""
    figure, image = draw(heat_map), as_image(heat_map)
    box, (height, width, _) = figure.axes[0].get_position(), image.shape
    rows, columns = len(heat_map.y_names), len(heat_map.x_names)
    down = [round(height * (1 - box.y1 + (i + 0.5) / rows * box.height)) for i in range(rows)]
    across = [round(width * (box.x0 + (j + 0.5) / columns * box.width)) for j in range(columns)]
    return [[tuple(int(v) for v in image[y, x]) for x in across] for y in down]


def in_bytes(heat_map: HeatMap, value: float) -> tuple[int, ...]:
    colour_of, norm = colours(heat_map)
    return tuple(int(v) for v in colour_of(norm(value), bytes=True)[:3])


def shown(figure: Figure, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


@pytest.mark.parametrize("heat_map", [MAP, LOAD], ids=["one-sided", "two-sided"])
def test_each_cell_has_its_colour_blank_is_paper_and_what_is_beyond_the_scale_its_end(heat_map: HeatMap) -> None:
    low, middle, high = (in_bytes(heat_map, v) for v in (0.0, 0.5, 1.0))
    assert len({low, middle, high, PAPER}) == 4
    assert cell_centres(heat_map) == [[low, middle, high], [PAPER, high, in_bytes(heat_map, heat_map.high)]]


def test_the_scale_is_that_of_the_map_whatever_its_numbers_are() -> None:
    small = replace(LOAD, values=((0.9, 1.0, 1.1), (1.0, 1.0, 1.0)))
    assert cell_centres(small)[1] == [in_bytes(LOAD, 1.0)] * 3
    for heat_map, ticks in (
        (small, ["0", "1", "2"]),
        (MAP, ["0", "0.5", "1"]),
        (replace(LOAD, low=-1.0), ["−1", "1", "2"]),
    ):
        assert [label.get_text() for label in draw(heat_map).axes[1].get_xticklabels()] == ticks


@pytest.mark.parametrize("heat_map", [MAP, LOAD], ids=["one-sided", "two-sided"])
def test_the_scale_shows_every_colour_from_low_to_high(heat_map: HeatMap) -> None:
    scale, image = draw(heat_map).axes[1], as_image(heat_map)
    box, (height, width, _) = scale.get_position(), image.shape
    row = image[round(height * (1 - (box.y0 + box.y1) / 2)), round(width * box.x0) + 2 : round(width * box.x1) - 2]
    expected = [in_bytes(heat_map, value) for value in np.linspace(heat_map.low, heat_map.high, len(row))]
    assert scale.get_xlim() == (heat_map.low, heat_map.high)
    assert np.abs(row.astype(int) - expected).max() < 8


def test_a_drawn_map_and_the_image_that_is_filled_in_are_the_same() -> None:
    figure = draw(LOAD)
    figure.set_dpi(SCREEN_DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    assert np.abs(drawn - as_image(LOAD)).mean() < 0.5  # the frame is drawn twice
    other = replace(LOAD, values=LOAD.values[::-1])
    assert cell_centres(other) == cell_centres(LOAD)[::-1]  # the first image left nothing in the second


def test_brightness_falls_or_rises_all_along_a_one_sided_scale_and_to_both_sides_of_a_centre() -> None:
    def brightness(heat_map: HeatMap, values: list[float]) -> list[float]:
        return [
            sum(c * w for c, w in zip(in_bytes(heat_map, v), (0.2126, 0.7152, 0.0722), strict=True)) for v in values
        ]

    tenths = [i / 10 for i in range(11)]
    assert all(a < b for a, b in pairwise(brightness(MAP, tenths)))
    assert all(a < b for a, b in pairwise(brightness(LOAD, tenths)))
    assert all(a > b for a, b in pairwise(brightness(LOAD, [1 + t for t in tenths])))
    red, _, blue = in_bytes(LOAD, 0.3)
    assert blue > red and in_bytes(LOAD, 1.7)[0] > in_bytes(LOAD, 1.7)[2]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 65), (64, 200), (260, 12), (3, 100)])
def test_names_do_not_overlap_and_stand_at_equal_distances_inside_the_picture(rows: int, columns: int) -> None:
    figure = draw(filled(rows, columns))
    axes, frame = figure.axes[0], figure.bbox.padded(1.0)
    for axis, count in (("x", columns), ("y", rows)):
        labels = getattr(axes, f"get_{axis}ticklabels")()
        lines = 1 + max(label.get_text().count("\n") for label in labels)
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) >= min(count, 8)
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[lines:], strict=False))
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
        ticks = [int(tick) for tick in getattr(axes, f"get_{axis}ticks")()]
        assert ticks[0] == 0 and len({b - a for a, b in pairwise(ticks)}) <= 1
    cells, scale = figure.axes
    ticks_of_scale = [label.get_window_extent() for label in scale.get_xticklabels()]
    labels = [
        text.get_window_extent() for text in (*figure.texts, cells.xaxis.label, cells.yaxis.label, scale.xaxis.label)
    ]
    parts = [*labels, *ticks_of_scale, cells.bbox.padded(-1.0), scale.bbox]
    assert not any(a.overlaps(b) for a, b in combinations(parts, 2))
    assert (cells.bbox.height / rows, scale.bbox.height) == pytest.approx(
        (min(18.0, max(2.5, 300 / rows)), SCALE), abs=0.1
    )


def test_a_row_without_a_name_parts_groups_each_of_which_begins_with_a_name() -> None:
    group = tuple(f"{i:02d}" for i in range(63))
    names = ("layer 00", *group, "", "layer 01", *group)
    figure = draw(replace(filled(len(names), 3), y_names=names))
    assert [name for name in shown(figure, "y") if "layer" in name] == ["layer 00", "layer 01"]
    first = shown(figure, "y")[: len(shown(figure, "y")) // 2]
    assert first[1:] == shown(figure, "y")[len(first) + 1 :]


@pytest.mark.parametrize(("count", "lines"), [(20, 1), (65, 2), (100, 3)])
def test_single_characters_all_keep_their_names_in_as_many_lines_as_it_takes(count: int, lines: int) -> None:
    characters = replace(filled(8, count), x_names=("\\n", "`", *map(chr, range(174, 172 + count))))
    labels = shown(draw(characters), "x")
    assert [label.lstrip("\n") for label in labels] == list(characters.x_names)
    assert [label.count("\n") for label in labels] == [i % lines for i in range(count)]


@pytest.mark.parametrize(
    "heat_map", [replace(MAP, values=(), x_names=(), y_names=()), replace(MAP, title="$x$ <b> & " * 20)]
)
def test_a_map_of_nothing_and_one_with_an_odd_title_are_drawn(heat_map: HeatMap, tmp_path: Path) -> None:
    save(heat_map, tmp_path)
    ElementTree.fromstring(as_inline_svg(heat_map))
    assert as_image(heat_map).shape[2] == 3 and (tmp_path / "loads.svg").is_file()


def test_in_a_page_a_map_has_a_caption_a_description_and_its_colours_as_data() -> None:
    html = to_html(Document("Report", "", (Section("Routing", (LOAD,)),)))
    assert "<figcaption>Loads</figcaption>" in html and 'aria-label="One falls."' in html and "A note." in html
    sources = re.findall(r'href="(data:image/png;base64,[^"]+)"', html)
    sizes = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size for source in sources]
    assert len(sizes) == 2 and (3, 2) in sizes  # scale and cells
    assert "currentColor" in as_inline_svg(LOAD)


def test_in_markdown_a_map_is_a_picture_with_its_note() -> None:
    text = to_markdown(Document("Report", "", (Section("Routing", (MAP,)),)), pictures="pics")
    assert "![One falls.](pics/loads.png)\n\n*A note.*" in text
