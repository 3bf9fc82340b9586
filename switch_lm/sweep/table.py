"""What the console says of a sweep: what will run, one row for each job, and the answer at the end."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switch_lm.config.plugins import command_line
from switch_lm.config.rules import show

Plan = Mapping[str, Any]
Record = Mapping[str, Any]
FIGURES = {"val_loss": 9, "dropped": 9, "chars/s": 9, "seconds": 8, "left": 8}


def print_plan(plan: Plan, *, folder: Path, notes: Sequence[str] = ()) -> None:
    """How many jobs of what, where, and the head of the table that each job adds a row to."""
    print("\n".join(plan_in_words(plan, notes)))
    print(f"folder    {folder}  (the same command continues there: finished jobs are kept)")
    print(f"watch it  {command_line('switch_lm.dashboard', '--outputs', str(folder))}\n")
    cells = [f"{'job':>7}", *(f"{_short(key):>{width}}" for key, width in _widths(plan).items())]
    print("  ".join(cells + [f"{name:>{width}}" for name, width in FIGURES.items()]), flush=True)


def plan_in_words(plan: Plan, notes: Sequence[str]) -> list[str]:
    """How many jobs of what, what they can resolve, and the notes."""
    from switch_lm.reporting.words import planned_words

    values = {key: list(dict.fromkeys(show(job[key]) for job in plan["jobs"] or [])) for key in plan["varied"]}
    varied = " x ".join(f"{key} {', '.join(value) or '(searched)'}" for key, value in values.items())
    resolvable = planned_words(plan["jobs"] or [])
    resolves = [f"resolves  {resolvable}"] if resolvable else []
    return [f"Sweep of {plan['num_jobs']} jobs: {varied or 'nothing varies'}", *resolves, *notes]


def heading(plan: Plan, record: Record) -> str:
    """What stands beside a job's progress bar."""
    values = " ".join(f"{_short(key)}={show(value)}" for key, value in record["overrides"].items())
    return f"job {record['job'] + 1}/{plan['num_jobs']} {values}"


def print_row(
    plan: Plan, record: Record, result: Mapping[str, Any], so_far: Sequence[Record], *, skipped: bool
) -> None:
    """One job, and how long the rest of the sweep will take."""
    cells = [f"{record['job'] + 1}/{plan['num_jobs']}".rjust(7)]
    cells += [show(record["overrides"][key]).rjust(width) for key, width in _widths(plan).items()]
    if record["status"] == "done":
        dropped, seconds = (
            result.get("dropped"),
            "before" if skipped or "seconds" not in record else f"{record['seconds']:.0f}",
        )
        figures = [f"{result['val_loss']:.4f}", "-" if dropped is None else f"{dropped:.2%}"]
        figures += [f"{result['tokens_per_second']:,.0f}", seconds, _left(plan, so_far)]
        cells += [figure.rjust(width) for figure, width in zip(figures, FIGURES.values(), strict=True)]
    else:
        cells.append(f"{record['status'].upper()}: {' '.join(record['error'].split())}")
    print("  ".join(cells), flush=True)


def print_left(plan: Plan, so_far: Sequence[Record]) -> None:
    """Which jobs are done and which are not, and how to continue."""
    done = [record["job"] + 1 for record in so_far if record["status"] == "done"]
    others = [number for number in range(1, plan["num_jobs"] + 1) if number not in done]
    line = command_line(*shlex.split(plan["command"])[2:])  # with what `python` is called here
    print(f"jobs done: {_listed(done)}; not done: {_listed(others)}\nthe same command continues: {line}", flush=True)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def print_end(folder: Path) -> None:
    """What the sweep found, and where its report is; a report that fails does not take the sweep with it."""
    from switch_lm.reporting.write import print_report, write_report

    print()
    try:
        print_report(write_report([folder]))
    except Exception as error:  # the runs are done and stored
        print(f"no report: {error}\nto try again: {command_line('switch_lm.report', str(folder))}")


def _widths(plan: Plan) -> dict[str, int]:
    shown = {key: [show(job[key]) for job in plan["jobs"] or []] or [" " * 12] for key in plan["varied"]}
    return {key: max(len(_short(key)), *(len(value) for value in values)) for key, values in shown.items()}


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _left(plan: Plan, so_far: Sequence[Record]) -> str:
    """From the mean time of a job so far; `-` if no time is known."""
    times = [record["seconds"] for record in so_far if "seconds" in record]
    if not times:
        return "-"
    ended = [
        record
        for record in so_far
        if record["status"] == "done" or (record["status"] != "running" and record.get("start") == plan["start"])
    ]
    seconds = max(0, plan["num_jobs"] - len(ended)) / plan["side_by_side"] * sum(times) / len(times)
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
