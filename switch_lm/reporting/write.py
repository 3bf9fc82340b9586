"""The report as files: the order of its sections, summary.csv, where they go, and what the console shows."""

import csv
import io
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switch_lm.config.rules import show
from switch_lm.pages.characters import harmless, isolated
from switch_lm.pages.document import Bullets, Document, Part, Section, Table, Text, numeric_columns
from switch_lm.reporting.comparisons import Difference, Study, compare, study
from switch_lm.reporting.facts import differing_keys, what_was_run
from switch_lm.reporting.pictures import curve_pictures, frontier_pictures, routing_pictures
from switch_lm.reporting.records import ReportError, crossing, find_sources, folder_of, is_run, read_records
from switch_lm.reporting.tables import (
    balance_table,
    comparison_table,
    computation_table,
    frontier_table,
    table_1,
)
from switch_lm.reporting.words import bullets, lead
from switch_lm.storage.files import replace_text, replacing
from switch_lm.storage.runs import OUTPUTS

DEFAULT_NAME, LONGEST_NAME = "report", 60
LINE_WIDTH = 120  # where the console is no terminal
FIGURES = (
    "val_loss", "val_loss_train_capacity", "best_val_loss", "steps", "training_seconds", "seconds", "tokens_per_second",
    "inference_tokens_per_second", "parameters", "active_parameters", "dropped", "dropped_whole_run",
    "train_capacity_dropped", "load_max_over_mean", "router_entropy", "computation.training", "computation.optimizer",
    "computation.inference_per_token", "computation.optimizer_per_step",
)  # fmt: skip
WORK = ("attention", "feed_forward", "router", "useful", "padded", "dropped", "head", "executed")
PASSES = ("forward_per_token", "backward_per_token", "forward_per_step", "backward_per_step")
COLUMNS = (
    "run", "variant", "status", "reason", "seed", *FIGURES, "threshold", "steps_to_threshold", "seconds_to_threshold",
    *(f"computation.{which}.{kind}" for which in PASSES for kind in WORK),
)  # fmt: skip


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
    """Writes Markdown, HTML, CSV and pictures on the runs that `paths` mean; ReportError says why it cannot.

    `out`: the folder, by default that of the sweep if one is given, else one below outputs/reports.
    """
    sources, folder = (
        find_sources(paths, outputs),
        Path(out).expanduser() if out is not None else _folder(paths, outputs),
    )
    usual = name == DEFAULT_NAME
    pictures = folder / ("pictures" if usual else f"{name}_pictures")
    with _writing(folder):  # before any run is read
        pictures.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    runs = study(read_records(sources), threshold=threshold)
    differences = compare(runs)
    document = build(runs, differences, title=f"Report on {', '.join(_stem(path) for path in paths)}")
    written = Written(
        markdown=folder / f"{name}.md",
        page=folder / f"{name}.html",
        table=folder / ("summary.csv" if usual else f"{name}.csv"),
        pictures=pictures,
        words=(document.lead, *bullets(runs, differences)),
        results=table_1(runs),
    )
    with _writing(folder):
        _write(document, summary_csv(runs), written)
    return written


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns an OSError of the disk into a ReportError with the fix."""
    try:
        yield
    except OSError as error:
        rule = "a report must go to a folder that can be written"
        raise ReportError(f"{folder}: {error.strerror}; {rule}; give another with --out FOLDER") from error


def build(study: Study, differences: Sequence[Difference], *, title: str) -> Document:
    """The whole report; sections without anything to show are left out."""
    items = bullets(study, differences)
    in_short: list[Part] = [Bullets(items)] if items else [Text("There is nothing to compare.")]
    in_short += [comparison_table(differences)] if differences else []
    balance: tuple[Part, ...] = (balance_table(study), *routing_pictures(study)) if study.sparse else ()
    some = bool(study.variants)
    sections = (
        Section("In short", tuple(in_short)),
        Section("Table 1", (table_1(study),) if some else ()),
        Section("Who drops, who balances", balance),
        Section("Frontier", (frontier_table(study), *frontier_pictures(study)) if some else ()),
        Section("Learning curves", tuple(curve_pictures(study))),
        Section("Computation", (computation_table(study),) if some else ()),
        Section("What was run", what_was_run(study)),
    )
    return Document(title, lead(study, differences), tuple(section for section in sections if section.parts))


def summary_csv(study: Study) -> str:
    """Every run as a row of plain numbers, for other programs.

    The same columns in the same order always; then what else the results hold, then the keys that differ.
    """
    figures = {key for run in study.records for key, value in run.result.items() if not isinstance(value, (list, dict))}
    more, differing = sorted(figures - {*COLUMNS, "name"}), differing_keys(study)
    text = io.StringIO()
    columns = [*COLUMNS, *more, *(f"config.{key}" for key in differing)]
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    labels = {id(run): variant.label for variant in study.variants for run in variant.runs}
    for run in study.records:
        row = {**run.result, "run": run.name, "variant": labels.get(id(run)), "seed": run.seed}
        row |= {"status": run.status, "reason": run.reason, "threshold": study.threshold and study.threshold.loss}
        if study.threshold and (hit := crossing(run.curves.validations, study.threshold.loss)):
            row |= {"steps_to_threshold": hit.steps, "seconds_to_threshold": hit.seconds}
        row |= {f"config.{key}": show(run.config[key]) for key in differing if key in run.config}
        table.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Nothing for what is missing or no number; true and false as in the configuration."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return show(value) if isinstance(value, bool) else value


def _write(document: Document, summary: str, to: Written) -> None:
    """All is made before anything is replaced, so that a report is never half a new one."""
    from switch_lm.pages.markdown import to_markdown  # with the pictures comes matplotlib: not for --help
    from switch_lm.pages.page import to_html
    from switch_lm.pages.pictures import files_of

    markdown, page = to_markdown(document, pictures=to.pictures.name), to_html(document)
    pictures = {name: content for picture in document.pictures for name, content in files_of(picture).items()}
    for name, content in pictures.items():
        with replacing(to.pictures / name) as file:
            file.write(content)
    for path, text in {to.markdown: markdown, to.page: page, to.table: summary}.items():
        replace_text(path, text)


def _folder(paths: Sequence[str | Path], outputs: Path) -> Path:
    folder = folder_of(paths[0], outputs) if len(paths) == 1 else None
    if folder is not None and not is_run(folder):
        return folder
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "_", "+".join(_stem(path) for path in paths)).strip("._")
    return outputs / "reports" / (stem[:LONGEST_NAME] or DEFAULT_NAME)


def _stem(path: str | Path) -> str:
    return Path(path).name or Path(path).resolve().name


def print_report(written: Written) -> None:
    """Prints Table 1, the words, and the lead just before the files, where the eye is when a long command ends."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH, highlight=False, markup=False)
    results = written.results
    if results.rows:
        shown = RichTable(title=results.caption, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for heading, right in zip(results.headings, numeric_columns(results), strict=True):
            shown.add_column(heading, justify="right" if right else "left", overflow="fold")
        for row in results.rows:
            shown.add_row(*(harmless(cell.text.replace("`", "")) for cell in row))
        console.print(shown)
    lead, *others = (isolated(harmless(text.replace("`", ""))) for text in written.words)
    console.print("\n".join(f"- {text}" for text in others))
    console.print(f"\n{lead}\n")
    files = f"{written.markdown}, {written.page.name}, {written.table.name}, {written.pictures.name}/"
    console.print(f"report: {files}", soft_wrap=True)
