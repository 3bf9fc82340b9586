"""How a heat map is drawn: its cells, the scale of their colours above them, and as many names as there is room for."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from switch_lm.pages.characters import harmless
from switch_lm.pages.document import HeatMap
from switch_lm.pages.plots import short, wrapped

# Everyone can tell blue from orange; the middle is grey, because white is the colour of a missing value.
TWO_SIDED = LinearSegmentedColormap.from_list("two_sided", ["#053a66", "#3f8ac0", "#dedbd3", "#e08214", "#7f3b08"])
# In points: the height of the scale, height and width of a letter, least width of the cells.
SCALE, NAME_SIZE, CHARACTER, WIDTH = 9.0, 7.5, 5.2, 300.0
BAND, BAND_NAME_SIZE, BAND_ROW = 22, 11.5, 11.5  # columns of a band at most; the size of its names, and its rows
HEIGHT = 20_000.0  # of the cells at most: matplotlib draws no image of more than 65,535 pixels


def colours(heat_map: HeatMap) -> tuple[Colormap, Normalize]:
    """The colours, and what places a number among them; a number beyond an end has the colour of that end."""
    if heat_map.centre is None:
        return colormaps["viridis"], Normalize(heat_map.low, heat_map.high)
    return TWO_SIDED, TwoSlopeNorm(heat_map.centre, heat_map.low, heat_map.high)


def rounded_up(value: float) -> float:
    """To two figures, for the end of a scale."""
    size = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / size) * size:.2g}")


def values_of(heat_map: HeatMap) -> list[np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]]:
    """The numbers of each band, rows by columns; what is not finite is masked, and so is a map without numbers.

    All bands have as many columns: what is beyond the last one is masked too.
    """
    bands, length = _bands(heat_map)
    values = np.full((max(1, len(heat_map.values)), bands * length), math.nan)
    if heat_map.values:
        values[:, : len(heat_map.values[0])] = heat_map.values
    return [np.ma.masked_invalid(part) for part in np.split(values, bands, axis=1)]


def _bands(heat_map: HeatMap) -> tuple[int, int]:
    """How many there are, and the columns of each."""
    columns = max(1, len(heat_map.x_names))
    bands = math.ceil(columns / BAND) if heat_map.in_bands else 1
    return bands, math.ceil(columns / bands)


def draw_heat_map(figure: Figure, heat_map: HeatMap) -> float:
    """Draws on a figure whose layout is constrained; how high the cells and the scale should be together, in points.

    The scale is the last of the figure's axes; the others are the bands, from the top.
    """
    rows, (bands, length), (cmap, norm) = max(1, len(heat_map.y_names)), _bands(heat_map), colours(heat_map)
    row = min(BAND_ROW if bands > 1 else 18.0, max(2.5, 300.0 / rows), HEIGHT / rows)
    size = BAND_NAME_SIZE if heat_map.in_bands else NAME_SIZE
    grid = figure.add_gridspec(1 + bands, height_ratios=[SCALE, *[row * rows] * bands])
    longest, mean = max(map(len, heat_map.x_names), default=0), sum(map(len, heat_map.x_names)) / length / bands
    crowd = length * (CHARACTER * size / NAME_SIZE * (longest if longest > 2 else mean) + 2) / WIDTH
    for band, values in enumerate(values_of(heat_map)):
        axes = figure.add_subplot(grid[1 + band])
        extent = (-0.5, length - 0.5, rows - 0.5, -0.5)
        image = axes.imshow(values, cmap, norm, aspect="auto", interpolation="none", extent=extent)
        axes.set(ylabel=wrapped(heat_map.y_label, 36))
        axes.spines[:].set_visible(True)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelsize=size)
        axes.set_yticks(*_names(heat_map.y_names, size / row))
        names = heat_map.x_names[band * length : (band + 1) * length]
        axes.set_xticks(*_names(names, crowd, lines=1 if longest > 2 else 3))
    axes.set(xlabel=wrapped(heat_map.x_label))
    middle = (heat_map.low + heat_map.high) / 2 if heat_map.centre is None else heat_map.centre
    look: dict[str, Any] = {
        "ticks": [heat_map.low, middle, heat_map.high],
        "format": FuncFormatter(short),
        "ticklocation": "top",
    }
    scale = figure.add_subplot(grid[0])
    figure.colorbar(image, scale, orientation="horizontal", label=wrapped(heat_map.value_label), **look)
    return row * rows * bands + SCALE


def _names(names: Sequence[str], crowd: float, *, lines: int = 1) -> tuple[list[int], list[str]]:
    """Which names are shown, and how: as many as fit, at equal distances from the first of each group on.

    A blank name separates groups. `crowd`: how many names would stand in the room of one. Names may take turns in up
    to that many `lines`. A backquote stays, because a column may be about it.
    """
    lines = min(lines, max(1, math.ceil(crowd)))
    every = next(step for power in range(9) for m in (1, 2, 5) if (step := m * 10**power) * lines >= crowd)
    shown, place = list[int](), -1
    for i, name in enumerate(names):
        place = place + 1 if name.strip() else -1
        if place >= 0 and place % every == 0:
            shown.append(i)
    return shown, [
        "\n" * (n % lines) + harmless(re.sub(r"[\x00-\x1f\x7f]+", " ", names[i])) for n, i in enumerate(shown)
    ]
