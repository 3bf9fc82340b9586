"""The values that a drawing shows under the pointer: matplotlib writes a `gid` into its SVG, here a `<title>`."""

import math
import re
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from scipy.spatial import KDTree

MARK = "hover: "
REACH, LEAST = 13.0, 3.0  # points across: what the pointer has to meet; in a crowd at least


def add_targets(axes: Axes, points: Iterable[tuple[float, float, str]]) -> None:
    """A place that is not seen at each (x, y), with a text on one line."""
    for x, y, text in points:
        if math.isfinite(x) and math.isfinite(y):
            (target,) = axes.plot(
                [x], [y], ".", markersize=2 * REACH, alpha=0.0, color="black", gid=MARK + text.replace('"', "'")
            )
            target.set_in_layout(False)


def part_targets(axes: Axes) -> None:
    """Makes those of a crowd so small that none covers another; those of one place stay on top of each other.

    When the layout is settled, on a figure of 72 dots an inch.
    """
    targets = [line for line in axes.lines if str(line.get_gid()).startswith(MARK)]
    if not targets:
        return
    place_N2 = axes.transData.transform(np.concatenate([np.asarray(target.get_xydata()) for target in targets]))
    apart_N = KDTree(np.unique(place_N2.round(3), axis=0)).query(place_N2, k=2)[0][:, 1]  # inf: there is one place
    for target, apart in zip(targets, apart_N.clip(LEAST, REACH), strict=True):
        target.set_markersize(2 * apart)


def with_titles(svg: str) -> str:
    """The SVG with a `<title>` in the place of each such `gid`."""
    return re.sub(f'<g id="{MARK}([^"]*)">', r"<g><title>\1</title>", svg)
