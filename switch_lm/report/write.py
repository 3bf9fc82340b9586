"""Where a report goes, and how it is written: whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from switch_lm.command import CommandError, require_writable
from switch_lm.files import replace_text
from switch_lm.pages.document import Document, Picture, Table
from switch_lm.report.comparisons import compare
from switch_lm.report.contents import build
from switch_lm.report.records import read_records
from switch_lm.report.sources import ReportError, find_sources, sweep_of
from switch_lm.report.study import Study, study
from switch_lm.report.summary_csv import summary_csv
from switch_lm.report.tables import table_1
from switch_lm.report.words import lead, words
from switch_lm.runs import OUTPUTS

DEFAULT_NAME = "report"
LONGEST_NAME = 60


@dataclass(frozen=True)
class Written:
    """Where the report is, and what it says in short; the first of `words` is its lead."""

    markdown: Path
    page: Path
    table: Path
    pictures: Path  # their folder
    words: tuple[str, ...]
    results: Table  # Table 1


def write_report(
    paths: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    name: str = DEFAULT_NAME,
    threshold: float | None = None,
    outputs: Path = OUTPUTS,
) -> Written:
    """Writes Markdown, HTML, CSV and pictures on the runs that `paths` mean; ReportError says why it can not.

    `out`: the folder, by default that of the sweep if one is given, else one below outputs/reports.
    """
    sources = find_sources(paths, outputs)
    folder = Path(out) if out is not None else _folder(paths, outputs)
    try:
        require_writable(folder / f"{name}.md", option="--out FOLDER")
    except CommandError as error:
        raise ReportError(str(error)) from error
    found = study(read_records(sources), threshold=threshold)
    own, said = name == DEFAULT_NAME, compare(found)
    written = Written(
        markdown=folder / f"{name}.md",
        page=folder / f"{name}.html",
        table=folder / ("summary.csv" if own else f"{name}.csv"),
        pictures=folder / ("pictures" if own else f"{name}_pictures"),
        words=(lead(found, said), *words(found, said)),
        results=table_1(found),
    )
    try:
        _write(build(found, title=f"Report on {', '.join(_stem(path) for path in paths)}"), found, written)
    except OSError as error:
        rule = f"the report must go to a folder that can be written ({error.strerror})"
        raise ReportError(f"{folder}: {rule}; choose another one with --out FOLDER") from error
    return written


def _write(document: Document, found: Study, to: Written) -> None:
    """All is made before anything is replaced, so that a report is never half a new one."""
    from switch_lm.pages.markdown import to_markdown  # with the pictures comes matplotlib: not for --help
    from switch_lm.pages.page import to_html

    texts = {
        to.markdown: to_markdown(document, pictures=to.pictures.name),
        to.page: to_html(document),
        to.table: summary_csv(found),
    }
    to.pictures.mkdir(parents=True, exist_ok=True)
    _write_pictures(document, to.pictures)
    for path, text in texts.items():
        replace_text(path, text)


def _write_pictures(document: Document, folder: Path) -> None:
    from switch_lm.pages.pictures import save

    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        for part in (part for section in document.sections for part in section.parts):
            if isinstance(part, Picture):
                save(part, Path(temporary))
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def _folder(paths: Sequence[str | Path], outputs: Path) -> Path:
    sweep = sweep_of(paths[0], outputs) if len(paths) == 1 else None
    if sweep is not None:
        return sweep
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "_", "+".join(_stem(path) for path in paths)).strip("._")
    return outputs / "reports" / (stem[:LONGEST_NAME] or DEFAULT_NAME)


def _stem(path: str | Path) -> str:
    return Path(path).name or Path(path).resolve().name
