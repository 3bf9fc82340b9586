"""Texts on the dashboard of a run that is finished, such as its certificate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap

from switch_lm.certificate.finding import Finding, Verdict

CELL_WIDTH = 28  # characters: beside longer lines TensorBoard breaks the words of the short columns


def certificate_markdown(findings: Iterable[Finding]) -> str:
    """The findings as a table in TensorBoard's Markdown, and before it how many there are of each verdict."""
    found = list(findings)
    counts = Counter(finding.verdict for finding in found)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    rows = [(_cell(f.check), f"**{f.verdict}**", _cell(f.measured), _cell(f.meaning)) for f in found]
    lines = ["| check | verdict | measured | what it means |", "| --- | --- | --- | --- |"]
    return "\n".join([summary, "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(text: str) -> str:
    """The text in short lines, in which nothing is markup: references stand for all that could be."""
    lines = [
        re.sub(r"[\\`*_{}\[\]<>&|~]", lambda match: f"&#{ord(match[0])};", line) for line in wrap(text, CELL_WIDTH)
    ]
    return "<br>".join(lines)


def write_text(run_folder: Path, tag: str, text: str, step: int) -> Path:
    """Adds a text to the run's events, in a file of its own, which replaces the one that an earlier call wrote."""
    from torch.utils.tensorboard import SummaryWriter

    suffix = f".{re.sub(r'[^a-z0-9]+', '-', tag.lower())}.text"
    before = list(run_folder.glob(f"events.out.tfevents.*{suffix}"))
    with SummaryWriter(run_folder, filename_suffix=suffix) as writer:
        writer.add_text(tag, text, step)
    for file in before:
        file.unlink()
    (written,) = run_folder.glob(f"events.out.tfevents.*{suffix}")
    return written
