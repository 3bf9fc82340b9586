"""The report as files: the order of its sections, summary.csv, where they go, and what the console shows."""

import csv
import io
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switch_lm.config.rules import show
from switch_lm.pages.document import Bullets, Code, Document, Part, Section, Table, Text
from switch_lm.pages.tiles import Tiles
from switch_lm.reporting.answer import next_commands, tiles, verdict
from switch_lm.reporting.caveats import caveats
from switch_lm.reporting.comparisons import Difference, Study, compare, study
from switch_lm.reporting.facts import differing_keys, what_differs, what_was_run
from switch_lm.reporting.pictures import curve_pictures, frontier_pictures, routing_pictures
from switch_lm.reporting.records import ReportError, crossing, find_sources, folder_of, is_run, read_records
from switch_lm.reporting.tables import balance_table, comparison_table, computation_table, frontier_table, table_1
from switch_lm.storage.files import replace_text, replacing
from switch_lm.storage.runs import OUTPUTS

DEFAULT_NAME, LONGEST_NAME = "report", 60
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
    """Where the report is, and what it says in short."""

    markdown: Path
    page: Path
    table: Path
    pictures: Path  # their folder
    verdict: str
    tiles: Tiles
    commands: tuple[str, ...]  # to try next
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
    sources, usual = find_sources(paths, outputs), name == DEFAULT_NAME
    folder = Path(out).expanduser() if out is not None else _folder(paths, outputs)
    pictures = folder / ("pictures" if usual else f"{name}_pictures")
    with _writing(folder):  # before any run is read
        pictures.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    runs = study(read_records(sources), threshold=threshold)
    differences = compare(runs)
    document = build(runs, differences, title=f"Report on {', '.join(_stem(path) for path in paths)}")
    files = folder / f"{name}.md", folder / f"{name}.html", folder / ("summary.csv" if usual else f"{name}.csv")
    commands, results = next_commands(runs, differences), table_1(runs, differences)
    written = Written(*files, pictures, document.lead, tiles(runs), commands, results)
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
    """The whole report: the answer, then tables; sections without anything to show are left out."""
    frontier, curves = frontier_pictures(study), curve_pictures(study)
    first, commands = (frontier or curves)[:1], next_commands(study, differences)
    opening: list[Part] = [tiles(study), Text(what_differs(study)), *first] if study.variants else []
    opening += [Text("What to try next:"), Code("\n".join(commands))] if commands else []
    balance: tuple[Part, ...] = (balance_table(study), *routing_pictures(study)) if study.sparse else ()
    notes, compared = caveats(study), (comparison_table(differences),) if differences else ()
    sections = (
        Section("Results", (table_1(study, differences), *compared)),
        Section("Drops and balance", balance),
        Section("Frontier", (frontier_table(study), *(one for one in frontier if one not in first))),
        Section("Learning curves", tuple(one for one in curves if one not in first)),
        Section("Computation", (computation_table(study),)),
        Section("What was run", what_was_run(study)),
        Section("How to read this", (Bullets(notes),) if notes else ()),
    )
    shown = sections if study.variants else sections[-2:]
    return Document(title, verdict(study, differences), tuple(one for one in shown if one.parts), tuple(opening))


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

    before = to.markdown.read_text(encoding="utf-8") if to.markdown.is_file() else ""
    markdown, page = to_markdown(document, pictures=to.pictures.name), to_html(document)
    pictures = {name: content for picture in document.pictures for name, content in files_of(picture).items()}
    for name, content in pictures.items():
        with replacing(to.pictures / name) as file:
            file.write(content)
    for path, text in {to.markdown: markdown, to.page: page, to.table: summary}.items():
        replace_text(path, text)
    for name in re.findall(rf"\]\({re.escape(to.pictures.name)}/(\w+)\.png\)", before):  # those of the last report
        for old in {f"{name}.png", f"{name}.svg"} - pictures.keys():
            (to.pictures / old).unlink(missing_ok=True)


def _folder(paths: Sequence[str | Path], outputs: Path) -> Path:
    folder = folder_of(paths[0], outputs) if len(paths) == 1 else None
    if folder is not None and not is_run(folder):
        return folder
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "_", "+".join(_stem(path) for path in paths)).strip("._")
    return outputs / "reports" / (stem[:LONGEST_NAME] or DEFAULT_NAME)


def _stem(path: str | Path) -> str:
    return Path(path).name or Path(path).resolve().name


def print_report(written: Written) -> None:
    """Prints the verdict, four figures, a small table, what to try next, and where the page is."""
    from switch_lm.pages.console import console, print_table, print_tiles, shown  # rich: not for --help

    to = console()
    to.print(shown(written.verdict) + "\n")
    print_tiles(to, written.tiles)
    print_table(to, written.results, columns=(0, 1, 2, 3, -1))  # to the difference from the control; and seeds
    files = f"{written.markdown}, {written.page.name}, {written.table.name}, {written.pictures.name}/"
    lines = [*(f"try next: {command}" for command in written.commands), f"report: {files}"]
    to.print("\n".join(lines), soft_wrap=True)  # a command is pasted whole
