"""What `make test-calibration` asks of every kind of interval; docs/statistics.md must state the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

REPEATS = 2000
COVERAGE, FALSE = 0.935, 0.06
REPEATED = 0.01  # another machine may round one repeat in a hundred to the other side
PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"


def calibrated(interval: str, data: str, *, covers: Sequence[bool] = (), false: Sequence[bool] = ()) -> None:
    """`covers`: whether each interval holds the planted effect. `false`: whether a repeat resolves a planted null."""
    shares = [None if not held else fmean(held) for held in (covers, false)]
    row = f"| {interval} | {data} | {' | '.join('-' if share is None else f'{share:.1%}' for share in shares)} |"
    assert all(len(held) >= REPEATS for held in (covers, false) if held), f"too few repeats: {row}"
    coverage, errors = shares
    assert coverage is None or coverage >= COVERAGE, row
    assert errors is None or errors <= FALSE, row
    written = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    stated = [cells[2:] for cells in written if cells[:2] == [f"| {interval}", data]]
    assert len(stated) == 1, f"docs/statistics.md needs the row\n{row}"
    for share, text in zip(shares, stated[0], strict=True):
        number = text.rstrip(" |")
        same = number == "-" if share is None else abs(float(number.rstrip("%")) / 100 - share) <= REPEATED
        assert same, f"docs/statistics.md states another figure than\n{row}"
