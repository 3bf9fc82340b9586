"""Scalars as a table: scalars.csv in the run's folder, with a row for each number."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.storage.files import replace_text
from switch_lm.training.boards.base import Board

SCALARS = "scalars.csv"
HEADER = "step,tag,value\n"


class Csv(Board):
    """The columns are step, tag and value. Texts, pictures and histograms are left out."""

    name = "csv"

    def __init__(self, run: Path, options: Any, *, config: Config, first_step: int) -> None:
        path = run / SCALARS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) < first_step]
        replace_text(path, HEADER + "".join(kept))
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._rows.writerows((step, tag, value) for tag, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()
