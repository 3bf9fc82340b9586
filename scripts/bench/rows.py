"""What a benchmark found: rows with their targets, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.harness import Spread


@dataclass(frozen=True)
class Verdict:
    """A target in words, and whether the figure meets it."""

    target: str
    met: bool


@dataclass(frozen=True)
class Row:
    """One figure of one contestant in one case; `facts` stand beside it. One that did not run has its error."""

    case: str
    name: str
    figure: Spread | None = None
    unit: str = ""
    verdict: Verdict | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


def at_most(figure: Spread | None, limit: float, unit: str = "") -> Verdict | None:
    """Whether the median is `limit` or less; None without a figure."""
    return None if figure is None else Verdict(f"<= {limit:g}{unit}", figure.median <= limit)


def at_least(figure: Spread | None, limit: float, unit: str = "") -> Verdict | None:
    """Whether the median is `limit` or more; None without a figure."""
    return None if figure is None else Verdict(f">= {limit:g}{unit}", figure.median >= limit)


@dataclass
class Report:
    """All rows of one benchmark, what must be known to read them, and where they were taken."""

    name: str
    machine: Mapping[str, str]
    repetitions: int
    notes: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    def markdown(self) -> str:
        parts = [f"# Benchmark: {self.name}", _facts(self.machine)]
        figures = f"Figures are medians of {self.repetitions} repetitions, with quartiles; ratios are paired."
        parts.append(("**Interrupted: what was measured until then.** " if self.interrupted else "") + figures)
        for case, rows in groupby(self.rows, key=lambda row: row.case):
            parts.append(f"## {case}\n\n{_table(list(rows))}")
        if self.notes:
            parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def write(self, folder: Path, stamp: str) -> list[Path]:
        """Writes STAMP-NAME.md and .json."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stamp}-{self.name}{suffix}" for suffix in (".md", ".json")]
        for path, text in zip(paths, (self.markdown(), self.as_json()), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths


def _table(rows: Sequence[Row]) -> str:
    header = ("what", "figure", "quartiles", "target", "", "beside it")
    return "\n".join(_line(cells) for cells in [header, ["---"] * len(header), *map(_cells, rows)])


def _cells(row: Row) -> list[str]:
    if row.figure is None:
        return [row.name, "-", "", "", "", f"did not run: {row.error}" if row.error else _facts(row.facts)]
    figure, spread = row.figure, f"{number(row.figure.low)} .. {number(row.figure.high)}"
    met = "" if row.verdict is None else ("met" if row.verdict.met else "**not met**")
    target = "" if row.verdict is None else row.verdict.target
    return [row.name, f"{number(figure.median)}{row.unit}", spread, target, met, _facts(row.facts)]


def number(value: float) -> str:
    """Three significant digits or more, with thousands parted."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def _facts(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
