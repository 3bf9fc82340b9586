"""The results of a benchmark: rows with their targets, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.harness import Race, Spread


@dataclass(frozen=True)
class Verdict:
    """A target in words, and whether the figure meets it."""

    target: str
    met: bool


@dataclass(frozen=True)
class Row:
    """The figure of one contestant in one case, with `facts` about it; one that did not run has its error instead."""

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


def timed(
    case: str,
    name: str,
    race: Race,
    *,
    time_over: str = "",
    speed_over: str = "",
    target: float | None = None,
    facts: Callable[[float], Mapping[str, str]],
) -> Row:
    """A contestant's time (or speed) over that of another, judged by `target`; `facts` gets its median seconds."""
    if name in race.errors:
        return Row(case, name, error=race.errors[name])
    figure = race.ratio(speed_over, name) if speed_over else race.ratio(name, time_over)
    judge = at_least if speed_over else at_most
    verdict = None if target is None else judge(figure, target, " x")
    return Row(case, name, figure, " x", verdict, facts(Spread.of(race.seconds[name]).median))


@dataclass
class Report:
    """All rows of one benchmark, the notes needed to read them, and the machine."""

    name: str
    machine: Mapping[str, str]
    repetitions: int
    notes: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    def markdown(self) -> str:
        parts = [f"# Benchmark: {self.name}", _facts(self.machine)]
        figures = f"Figures are medians of {self.repetitions} repetitions, with quartiles; ratios are paired."
        parts.append(("**Interrupted: these are the results up to then.** " if self.interrupted else "") + figures)
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
    header = ("what", "figure", "quartiles", "target", "", "details")
    return "\n".join(_line(cells) for cells in [header, ["---"] * len(header), *map(_cells, rows)])


def _cells(row: Row) -> list[str]:
    if row.figure is None:
        return [row.name, "-", "", "", "", f"did not run: {row.error}" if row.error else _facts(row.facts)]
    figure, spread = row.figure, f"{number(row.figure.low)} .. {number(row.figure.high)}"
    met = "" if row.verdict is None else ("met" if row.verdict.met else "**not met**")
    target = "" if row.verdict is None else row.verdict.target
    return [row.name, f"{number(figure.median)}{row.unit}", spread, target, met, _facts(row.facts)]


def number(value: float) -> str:
    """Three significant digits or more, with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def _facts(facts: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
