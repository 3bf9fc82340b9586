"""How the certificate is shown: its table, the table of all policies, and a progress bar."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from switch_lm.certificate.certify import PARTS, Say
from switch_lm.certificate.finding import Finding, Verdict
from switch_lm.certificate.policies import Measured
from switch_lm.probe.subject import TIGHT

NOTES = (
    "Own future, other rows: whether they move a token, and by how much a logit at most, at tighter factors "
    f"({' and '.join(f'{factor:g}' for factor in TIGHT)}) too. Not placed: choices that the selected expert did not "
    "compute. Loss: nats per character, as training scores, without dropout and jitter. Gap: that, less the loss read "
    "character by character, ± its standard error. Of the future: the loss where the true next character follows, less "
    "that where another does; both before the same other text."
)
LINE_WIDTH = 120  # where the console is no terminal
POLICIES_WIDTH = 124  # no column is cut, whatever the terminal
STYLES = {Verdict.PASS: "green", Verdict.LEAKS: "yellow", Verdict.FAIL: "bold red"}


def _console(at_least: int = 0) -> Console:
    width = Console().width if sys.stdout.isatty() else LINE_WIDTH
    return Console(width=max(width, at_least), highlight=False)


@contextmanager
def progress(total: int = len(PARTS)) -> Iterator[Say]:
    """A bar on stderr, which is gone at the end; each call names what begins."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda text: bar.update(task, description=text, advance=1)


def findings(found: Sequence[Finding]) -> None:
    """The certificate."""
    table = Table(box=box.SIMPLE_HEAD, title="Certificate", title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured, and what it means", overflow="fold")
    for finding in found:
        verdict = f"[{STYLES[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.check, verdict, f"{finding.measured}\n[dim]{finding.meaning}[/dim]")
    console = _console()
    console.print(table)
    counts = Counter(finding.verdict for finding in found)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]), markup=False)


def policies(measured: Sequence[Measured], *, factor: float) -> None:
    """Every rule on the same weights."""
    title = f"Every rule on the same weights, capacity factor {factor:g}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for heading in ("rule", "own future", "other rows"):
        table.add_column(heading, no_wrap=True)
    for heading in ("not placed", "loss", "gap", "of the future"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in measured:
        table.add_row(
            one.policy,
            _seen(one.sees_future, one.by_future),
            _seen(one.depends_on_rows, one.by_rows),
            f"{one.not_placed:.1%}",
            f"{one.loss:.4f}",
            str(one.gap),
            "" if one.future is None else str(one.future),
        )
    _console(POLICIES_WIDTH).print(table)
    _console().print(NOTES, markup=False)


def _seen(verdict: Verdict, move: float) -> str:
    words = {Verdict.PASS: "no", Verdict.LEAKS: "yes", Verdict.FAIL: "FAIL: yes"}
    return f"[{STYLES[verdict]}]{words[verdict]} ({move:.2g})[/]"
