"""metrics.jsonl: every figure that a run reports, one line each time it reports some."""

import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from switch_lm.config.keys import ConfigError
from switch_lm.storage.files import replacing

METRICS = "metrics.jsonl"
Row = dict[str, Any]  # "step", "time" (seconds since the run's first start), and numbers by tag; None: not finite


def read(run: Path) -> list[Row]:
    """The rows of a run in the order in which they were written, without a last line that was cut off.

    ConfigError for any other line that is not a row; FileNotFoundError if there is no file.
    """
    return [row for _, row in _rows(run / METRICS)]


def series(rows: Iterable[Row], tag: str) -> dict[int, float]:
    """The values of a tag by step, NaN where the value was not finite. The last value of a step counts."""
    return {row["step"]: math.nan if row[tag] is None else float(row[tag]) for row in rows if tag in row}


class MetricsFile:
    """Appends to a run's metrics.jsonl. A line is with the operating system when `write` returns.

    What an earlier start wrote at `first_step` or later is removed, since it is written again; but not the first
    `kept` rows.
    """

    def __init__(self, run: Path, *, first_step: int, kept: int = 0) -> None:
        self._path = run / METRICS
        written = list(_rows(self._path)) if self._path.exists() else []
        rows = written[:kept] + [(line, row) for line, row in written[kept:] if row["step"] < first_step]
        with replacing(self._path) as file:
            file.writelines(line for line, _ in rows)
        self.num_rows, self.removed = len(rows), len(rows) < len(written)
        self.late = [row for _, row in rows if row["step"] >= first_step]  # which stayed
        self._began = time.monotonic() - (rows[-1][1]["time"] if rows else 0.0)
        self._file = self._path.open("ab", buffering=0)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Appends one line. OSError with the file's name if the disk does not take all of it."""
        row: Row = {"step": step, "time": round(time.monotonic() - self._began, 3)}
        row |= {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            whole = self._file.write(line) == len(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.num_rows += 1
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        self._file.close()


def _rows(path: Path) -> Iterator[tuple[bytes, Row]]:
    """Each whole line, with what it holds."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            is_row = isinstance(row["step"], int) and isinstance(row["time"], int | float)
        except (ValueError, TypeError, KeyError):
            is_row = False
        if not is_row:
            raise ConfigError(f"{path}, line {number}: not a JSON object with step and time; remove this line")
        yield line, row
