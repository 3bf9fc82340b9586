"""The values that a drawing shows under the pointer: matplotlib writes a `gid` into its SVG, here a `<title>`."""

import math
import re
from collections.abc import Iterable

from matplotlib.axes import Axes

MARK = "hover: "
REACH = 13.0  # points across: what the pointer has to meet


def add_targets(axes: Axes, points: Iterable[tuple[float, float, str]]) -> None:
    """A place that is not seen at each (x, y), with a text on one line."""
    for x, y, text in points:
        if math.isfinite(x) and math.isfinite(y):
            (target,) = axes.plot(
                [x], [y], ".", markersize=2 * REACH, alpha=0.0, color="black", gid=MARK + text.replace('"', "'")
            )
            target.set_in_layout(False)


def with_titles(svg: str) -> str:
    """The SVG with a `<title>` in the place of each such `gid`."""
    return re.sub(f'<g id="{MARK}([^"]*)">', r"<g><title>\1</title>", svg)
