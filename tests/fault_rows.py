"""The faults that a run must survive. A test names the one it covers; at the end each is listed with its seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest

FAULTS = {
    1: "kill -9 at any moment, then resume: bit-identical",
    2: "kill -9 while a checkpoint is written",
    3: "disk full on save",
    4: "SIGTERM",
    5: "Ctrl-C once, twice",
    6: "SIGTERM inside a sweep",
    7: "one job of a sweep fails",
    8: "loss becomes NaN or infinite",
    9: "NaN in one router only",
    10: "download with one flipped bit",
    11: "short body, dropped connection, 500, 429, slow server, HTML with 200",
    12: "cached text truncated or changed",
    13: "no network at all",
    14: "four processes fetch at once",
    15: "read-only or blocked data or output folder",
    16: "bad configurations",
    17: "checkpoint missing, empty, truncated, random bytes",
    18: "checkpoint of another configuration",
    19: "other vocabulary, unknown character",
    20: "malicious pickle or URL as checkpoint, code in a configuration",
    21: "resume twice, a run into a used folder",
    22: "job of a sweep against the run alone",
    23: "all tokens to one expert, one without any, batch and context of one",
    24: "same seed twice, another seed",
    25: "a run name that leaves its folder",
}


@pytest.fixture(autouse=True)
def _rows(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    for mark in request.node.iter_markers("row"):
        for row in mark.args:
            record_property("row", row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, row in report.user_properties:
            if name == "row" and report.when == "call":
                tests[int(str(row))] += 1
                seconds[int(str(row))] += report.duration
    if tests:
        terminalreporter.section("faults")
        for row in sorted(tests):
            terminalreporter.line(f"{row:2}  {tests[row]:4} tests {seconds[row]:7.1f} s  {FAULTS[row]}")
        if missing := sorted(FAULTS.keys() - tests.keys()):
            terminalreporter.line(f"not in this run: {', '.join(map(str, missing))}")
