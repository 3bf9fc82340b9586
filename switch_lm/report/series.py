"""Estimates as a line, or as points, of a picture: means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from switch_lm.pages.document import Series
from switch_lm.report.statistics import Estimate

INTERVAL = "Bars and bands: 95 % t interval over seeds; none for one seed."
Places = Sequence[tuple[float, Estimate]]


def series_of(
    label: str,
    places: Places,
    *,
    labels: Sequence[str] | None = None,
    marked: Sequence[bool] | None = None,
    line: bool = True,
) -> Series:
    """NaN is the end of an interval that does not exist; with none at all there are no ends either."""
    estimates = [found for _, found in places]
    some = any(found.low is not None for found in estimates)
    return Series(
        label,
        tuple(x for x, _ in places),
        tuple(found.mean for found in estimates),
        low=tuple(math.nan if found.low is None else found.low for found in estimates) if some else None,
        high=tuple(math.nan if found.high is None else found.high for found in estimates) if some else None,
        labels=None if labels is None else tuple(labels),
        marked=None if marked is None else tuple(marked),
        line=line,
    )
