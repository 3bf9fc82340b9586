"""Where the names of points stand, so that none covers another, a point or a line, or leaves the axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot

Place = tuple[float, float]  # x to the right and y upwards, in points


@dataclass(frozen=True)
class Box:
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, centre: Place, width: float, height: float) -> Box:
        """The box of that size about its centre."""
        x, y = centre
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def distance(self, place: Place) -> float:
        """How far the place is from the box; 0 inside it."""
        x, y = place
        return hypot(max(self.left - x, x - self.right, 0.0), max(self.bottom - y, y - self.top, 0.0))

    def holds(self, other: Box) -> bool:
        """Whether the other box lies inside this one."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.bottom <= other.bottom and other.top <= self.top


# Right before left and above before below: the way a reader looks for a name.
DIRECTIONS: list[Place] = [(1, 0.55), (1, -0.55), (0, 1), (1, 0), (-1, 0.55), (-1, -0.55), (0, -1), (-1, 0)]
DIRECTIONS += [(0.6, 1), (-0.6, 1), (0.6, -1), (-0.6, -1)]
DISTANCES = (8.0, 13.0, 20.0, 30.0)
MISTAKEN = 60.0  # worse than covering this area


def place_labels(
    points: Sequence[Place], sizes: Sequence[Place], *, inside: Box, obstacles: Iterable[Box]
) -> list[Place | None]:
    """The centre of each label, the earlier ones choosing first; None where there is no room for it.

    `sizes` are widths and heights. No two labels overlap and all lie `inside`; `obstacles` are covered only where
    there is no other place, and then as little as can be.
    """
    blocked, taken, centres = list(obstacles), list[Box](), list[Place | None]()
    for point, (width, height) in zip(points, sizes, strict=True):
        best: tuple[float, Place, Box] | None = None
        for centre in _candidates(point, width, height):
            box = Box.around(centre, width, height)
            if not inside.holds(box) or any(box.overlap(other) for other in taken):
                continue
            others = (other for other in points if other != point)
            nearer = any(box.distance(other) < box.distance(point) for other in others)  # whose name would it be?
            cost = sum(box.overlap(other) for other in blocked) + MISTAKEN * nearer
            if best is None or cost < best[0]:
                best = (cost, centre, box)
            if cost == 0:
                break
        centres.append(best[1] if best else None)
        taken += [best[2]] if best else []
    return centres


def _candidates(point: Place, width: float, height: float) -> Iterable[Place]:
    """Centres of the label around its point, the near ones first."""
    x, y = point
    for distance in DISTANCES:
        for across, up in DIRECTIONS:
            yield x + across * (width / 2 + distance), y + up * (height / 2 + distance)


def along(points: Sequence[Place], *, size: float = 2.0, step: float = 4.0) -> list[Box]:
    """Small boxes that cover the line through the points, for use as obstacles."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        count = int(max(abs(x1 - x0), abs(y1 - y0)) / step) + 1
        shares = [i / count for i in range(count + 1)]
        boxes += [Box.around((x0 + (x1 - x0) * s, y0 + (y1 - y0) * s), size, size) for s in shares]
    return boxes
