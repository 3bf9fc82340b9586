"""How the certificate is shown: its table, the table of all policies, and a text on the dashboard of its run."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from switch_lm.certificate.families import Row
from switch_lm.certificate.finding import Finding, Verdict
from switch_lm.certificate.gaps import equal, plus_minus
from switch_lm.certificate.policies import Measured
from switch_lm.pages.console import console
from switch_lm.probe.subject import TIGHT
from switch_lm.stats.clusters import LEAST
from switch_lm.stats.intervals import Estimate

NOTES = (
    "Own future, other rows: whether they move a token, and by how much a logit at most, as a share of the largest "
    f"logit, at tighter factors ({' and '.join(f'{factor:g}' for factor in TIGHT)}) too. No slot: choices that the "
    "selected expert did not compute. Loss: nats per character, as training scores, without dropout or jitter. Gap: "
    "this loss, less the loss read character by character. Of the future: the loss where the true next character "
    "follows, less that where another does; both before the same other text. "
)
OF_FAMILIES = (
    "Verdict: FAIL if any check fails, LEAKS if a token's own future moves it; other rows do not count here. Busiest: "
    "the load of the busiest expert, x an even share; experts: per token; both as validation routes. Seconds: training "
    "and checks. "
)
POLICIES_WIDTH = 126  # no column is cut, whatever the terminal
FAMILIES_WIDTH = 124  # beside their names
EFFECT = "*"
CELL_WIDTH = 28  # characters: beside longer lines TensorBoard breaks the words of the short columns
NAME_WIDTH = 27  # of the longest check, and two blanks
CUT: Any = {"no_wrap": True, "overflow": "ellipsis"}  # a line that may be longer than the terminal is wide
STYLES = {Verdict.PASS: "green", Verdict.LEAKS: "yellow", Verdict.FAIL: "bold red"}


def certificate(findings: Sequence[Finding]) -> None:
    """Failures and leaks first, then a line for each PASS."""
    rows = Table.grid(padding=(0, 2))
    cut: Any = CUT if sys.stdout.isatty() else {}
    for finding in sorted(findings, key=lambda one: -list(Verdict).index(one.verdict)):
        mark = Text(finding.verdict, STYLES[finding.verdict])
        if finding.verdict == Verdict.PASS:
            rows.add_row(mark, Text(f"{finding.check:{NAME_WIDTH}}{finding.meaning}", **cut))
            continue
        how = cut if finding.verdict == Verdict.LEAKS else {}
        judged = f": {finding.judgement}" if finding.judgement else ""
        lines = Text(f"{finding.check}{judged}"), Text(finding.measured, **how), Text(finding.meaning, "dim")
        rows.add_row(mark, Group(*lines))
    console().print(rows, f"{_summary(findings)}; --verbose prints all that was measured", sep="\n")


def whole_certificate(findings: Sequence[Finding], title: str = "Certificate") -> None:
    """All that was measured, in the order of the checks."""
    table = _table(title)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured, and what it means", overflow="fold")
    for finding in findings:
        verdict = f"[{STYLES[finding.verdict]}]{finding.verdict}[/]"
        words = f"{finding.measured}\n[dim]{finding.meaning}[/dim]"
        table.add_row(finding.check, verdict, words + f"\n{finding.judgement}" * bool(finding.judgement))
    console(markup=True).print(table)
    console().print(_summary(findings))


def policies(measured: Sequence[Measured], *, factor: float) -> None:
    """Every rule on the same weights."""
    table = _table(f"Every rule on the same weights, capacity factor {factor:g}")
    effects = [effect for one in measured for effect in (one.gap, one.future) if effect is not None]
    comparisons = _intervals(effects)
    for heading in ("rule", "own future", "other rows"):
        table.add_column(heading, no_wrap=True)
    for heading in ("no slot", "loss", "gap", "of the future"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in measured:
        table.add_row(
            one.policy,
            _seen(one.sees_future, one.by_future),
            _seen(one.depends_on_rows, one.by_rows),
            f"{one.without_slot:.1%}",
            f"{one.loss:.4f}",
            *("" if effect is None else _effect(effect, comparisons) for effect in (one.gap, one.future)),
        )
    console(at_least=POLICIES_WIDTH, markup=True).print(table)
    console().print(NOTES + _of_effects(effects))


def families(rows: Mapping[str, Row | str], *, title: str) -> None:
    """Every family of routers, trained alike; or why one of them is not certified."""
    table = _table(title)
    measured = [one for one in rows.values() if isinstance(one, Row)]
    effects = [effect for one in measured for effect in (one.gap, one.future) if effect is not None]
    comparisons = _intervals(effects)
    for heading in ("router", "verdict", "own future", "other rows"):
        table.add_column(heading, no_wrap=True)
    for heading in ("gap", "of the future", "no slot", "busiest", "experts", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in rows.items():
        if isinstance(one, str):
            table.add_row(name, "none")
            continue
        table.add_row(
            name,
            f"[{STYLES[one.verdict]}]{one.verdict}[/]",
            _seen(one.own_future, one.by_future),
            _seen(one.other_rows, one.by_rows),
            *("" if effect is None else _effect(effect, comparisons) for effect in (one.gap, one.future)),
            f"{one.without_slot:.1%}",
            f"{one.busiest:.2f}",
            f"{one.experts_per_token:.2f}",
            f"{one.seconds:.0f}",
        )
    console(at_least=FAMILIES_WIDTH + max(map(len, rows)), markup=True).print(table)
    to = console()
    for name, one in rows.items():
        if isinstance(one, str):
            to.print(f"{name} is not certified: {one}")
        elif said := [*[one.state] * bool(one.state), *[f"FAIL of {', '.join(one.failed)}"] * bool(one.failed)]:
            to.print(f"{name}: {'; '.join(said)}")
    to.print(f"{OF_FAMILIES}{NOTES}{_of_effects(effects)}")


def _effect(one: Estimate, comparisons: int) -> str:
    """In equal columns, whether there is a mark or not."""
    return plus_minus(one) + (EFFECT if one.resolved(comparisons) else " ")


def _intervals(effects: Sequence[Estimate]) -> int:
    return sum(effect.error is not None for effect in effects)


def _of_effects(effects: Sequence[Estimate]) -> str:
    comparisons, notes = _intervals(effects), list[str]()
    if comparisons:
        notes.append(
            "±: half of the 95% interval of that gap alone, over batches where rows share places, else over windows; "
            f"{EFFECT}: not 0, by intervals so wide that all {comparisons} of this table hold at once (Bonferroni)."
        )
    if any(effect.error is None and not equal(effect) for effect in effects):
        notes.append(f"Without ±: fewer than {LEAST} batches, or windows, or all of them alike.")
    return " ".join(notes)


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)


def _seen(verdict: Verdict, move: float) -> str:
    words = {Verdict.PASS: "no", Verdict.LEAKS: "yes", Verdict.FAIL: "FAIL: yes"}
    return f"[{STYLES[verdict]}]{words[verdict]} ({move:.2g})[/]"


def _summary(findings: Iterable[Finding]) -> str:
    """How many findings there are of each verdict."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])


def certificate_markdown(findings: Sequence[Finding]) -> str:
    """The findings as a table in TensorBoard's Markdown, below how many there are of each verdict."""
    rows = [
        (
            _cell(f.check),
            f"**{f.verdict}**",
            _cell(f.measured),
            _cell("; ".join(filter(None, (f.meaning, f.judgement)))),
        )
        for f in findings
    ]
    lines = ["| check | verdict | measured | what it means |", "| --- | --- | --- | --- |"]
    return "\n".join([_summary(findings), "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(text: str) -> str:
    """The text in short lines without any markup: character references stand for what could be read as such."""
    lines = [
        re.sub(r"[\\`*_{}\[\]<>&|~]", lambda match: f"&#{ord(match[0])};", line) for line in wrap(text, CELL_WIDTH)
    ]
    return "<br>".join(lines)


def write_text(run_folder: Path, tag: str, text: str, step: int, *, open_writer: Callable[..., Any]) -> Path:
    """Adds a text to the run's events, in a file of its own, which replaces the one that an earlier call wrote.

    `open_writer`: gives TensorBoard's writer for the run's folder.
    """
    suffix = f".{re.sub(r'[^a-z0-9]+', '-', tag.lower())}.text"
    before = list(run_folder.glob(f"events.out.tfevents.*{suffix}"))
    with open_writer(run_folder, filename_suffix=suffix) as writer:
        writer.add_text(tag, text, step)
    for file in before:
        file.unlink()
    (written,) = run_folder.glob(f"events.out.tfevents.*{suffix}")
    return written
