"""Writes what scripts/gpu_check.sh found as a page: `python scripts/bench/gpu_report.py OUT` makes OUT/report.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

NANOGPT_LOSS, AT_MOST_SECONDS = 1.4697, 60.0
LAYER_GOALS = {8: 1.6, 64: 2.5}
STEP_GOAL = 1.0
RUNS = ("default", "gpu")
FIGURES = ("val_loss", "seconds", "training_seconds", "tokens_per_second", "peak_memory_bytes")
VERDICT = re.compile(r"\b[A-Z]{4,}\b|^ check +verdict ")  # PASS, FAIL, LEAKS ...
Rows = list[dict[str, Any]]


def text_of(file: Path) -> str:
    """Empty if there is none."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def json_of(file: Path) -> dict[str, Any]:
    """Empty if there is none, or half of one."""
    try:
        return dict(json.loads(text_of(file)))
    except ValueError:
        return {}


def bench_rows(out: Path) -> Rows:
    return list(json_of(out / "gpu_bench.json").get("rows", []))


def best(rows: Rows, case: str, start: str) -> dict[str, Any] | None:
    """The fastest row of the case whose name begins so."""
    chosen = [row for row in rows if case in row["case"] and row["name"].startswith(start) and "seconds" in row]
    return min(chosen, key=lambda row: float(row["median_seconds"]), default=None)


def ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> float | None:
    """The median of the ratios within each round."""
    if ours is None or theirs is None:
        return None
    return median(a / b for a, b in zip(ours["seconds"], theirs["seconds"], strict=True))


def seconds_to_loss(file: Path) -> tuple[float | None, bool]:
    """Training seconds at the first validation at nanoGPT's loss or below, and whether there was any validation."""
    values: dict[int, dict[str, float]] = {}
    for line in text_of(file).splitlines():
        try:
            record = json.loads(line)
            values.setdefault(int(record["step"]), {}).update(record)
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut off
    validated = {step: found for step, found in values.items() if found.get("val/loss") is not None}
    for step in sorted(validated):
        if validated[step]["val/loss"] <= NANOGPT_LOSS:
            return validated[step].get("perf/training_seconds"), True
    return None, bool(validated)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for cells in lines:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
    yield ""


def judged(figure: float | None, goal: float, unit: str = "") -> tuple[str, str]:
    if figure is None:
        return "-", "not measured"
    return f"{figure:.2f}{unit}", "met" if figure <= goal else "not met"


def goals(out: Path) -> Iterator[str]:
    rows, lines = bench_rows(out), []
    for number, goal in LAYER_GOALS.items():
        case = f", {number} experts"
        found = ratio(best(rows, case, "ours, capacity factor 1.0"), best(rows, case, "dense"))
        what = f"layer with {number} experts, capacity factor 1.0: time over dense, the best of each"
        lines.append((what, f"<= {goal}", *judged(found, goal)))
    found = ratio(best(rows, "step", "ours, dense"), best(rows, "step", "nanoGPT's way, compiled"))
    lines.append(("step of our dense model: time over nanoGPT's way, compiled", f"<= {STEP_GOAL}", *judged(found, 1.0)))
    seconds, validated = seconds_to_loss(out / "runs" / "gpu" / "metrics.jsonl")
    figures = judged(seconds, AT_MOST_SECONDS, " s")
    if seconds is None and validated:
        figures = "not reached", "not met"
    lines.append((f"training time to nanoGPT's loss {NANOGPT_LOSS}", f"<= {AT_MOST_SECONDS:.0f} s", *figures))
    yield from ("## Goals", "")
    yield from table(("goal", "limit", "measured", "verdict"), lines)


def facts(out: Path) -> Iterator[str]:
    found = dict(line.split(": ", 1) for line in text_of(out / "logs" / "facts.log").splitlines() if ": " in line)
    yield from ("# What was measured on a GPU", "")
    if found.get("dry run") == "yes":
        yield from ("This was a dry run on a CPU with small sizes: its figures say nothing about a GPU.", "")
    names = ("card", "driver", "memory", "torch", "CUDA of torch", "python", "cores", "commit", "date")
    yield from table(("", ""), ((name, found.get(name, "unknown")) for name in names))


def tests(out: Path) -> Iterator[str]:
    lines = text_of(out / "logs" / "tests.log").strip().splitlines()
    counts = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    yield from ("## Tests", "", counts[-1] if counts else "Missing: the tests left no summary.", "")
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield from (f"- `{line}`" for line in failures)
    if failures:
        yield ""


def measured(out: Path) -> Iterator[str]:
    rows = bench_rows(out)
    yield from ("## Layer and step", "", "Median of 5 rounds, taken in turn; the ratio is paired in each round.", "")
    if not rows:
        yield from ("Missing: the benchmark left no rows.", "")
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        yield from (f"### {case}", "")
        yield from table(
            ("", "ms", "tokens/s", "ratio (quartiles)"), (cells(row) for row in rows if row["case"] == case)
        )


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    name = str(row["name"])
    if "tflops" in row:
        return name, "-", f"{row['tflops']:.0f} TFLOP/s", "-"
    if "error" in row:
        return name, "-", "-", str(row["error"])
    shown = "-"
    if "ratio" in row:
        low, high = row["ratio_quartiles"]
        shown = f"{row['ratio']:.2f} ({low:.2f} .. {high:.2f}) x {row['over']}"
    return name, f"{1000 * row['median_seconds']:.3f}", f"{row['tokens_per_second']:,.0f}", shown


def runs(out: Path) -> Iterator[str]:
    results = {name: json_of(out / "runs" / name / "result.json") for name in RUNS}
    yield from ("## Runs", "")
    yield from (f"Missing: the run `{name}` has no result.json.\n" for name, result in results.items() if not result)
    yield from table(("", *RUNS), ((key, *(shown(results[name].get(key)) for name in RUNS)) for key in FIGURES))
    for name in RUNS:
        lines = [line.rstrip() for line in text_of(out / "logs" / f"check_{name}.log").splitlines()]
        verdicts = [line for line in lines if VERDICT.search(line)]
        yield from (f"### Certificate of `{name}`", "")
        yield from ("```", *verdicts, "```", "") if verdicts else ("Missing: it has no verdicts.", "")


def shown(value: Any) -> str:
    if value is None:
        return "missing"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def parts(out: Path) -> Iterator[str]:
    lines = [line.split("\t") for line in text_of(out / "parts.tsv").splitlines()[1:]]
    yield from ("## Parts", "", "Exit code 124 or 137: its time was over.", "")
    yield from table(("part", "exit code", "seconds"), lines)


def main() -> int:
    out = Path(sys.argv[1])
    sections = (facts, goals, tests, measured, runs, parts)
    (out / "report.md").write_text("\n".join(line for part in sections for line in part(out)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
