"""What do the experts do? `python -m switch_lm.inspect --run NAME [--compare NAME]`: a page, pictures, tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    UsageError,
    as_path,
    compute_on,
    finish,
    model_parser,
    open_model,
    require_extra,
    require_writable,
    text_of,
    writing,
)
from switch_lm.pages.characters import harmless, isolated
from switch_lm.storage.files import TABLES, read_json, write_table
from switch_lm.storage.run_folder import RESULT
from switch_lm.storage.runs import run_name, run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from switch_lm.inspection.study import Inspection
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.storage.checkpoint import Header

FOLDER, PAGE = "inspect", "inspect.html"


def parser() -> argparse.ArgumentParser:
    about = (
        "Shows what a trained model's routers and experts do: a card per expert, which characters go where, who is "
        "dropped, whether the router was right, whether the experts differ, and when they specialised."
    )
    examples = {
        "": "the newest run",
        "--compare OTHER": "two side by side",
        "--routes FILE.csv": "where each character goes",
    }
    options = model_parser("inspect", about, examples, computes="a GPU if there is one, 1 thread")
    options.add_argument("--compare", metavar="NAME", help="a second run, to be put beside the first")
    options.add_argument("--data", type=as_path, metavar="FILE", help="the text file, if it has moved")
    where = f"where to write (default: {FOLDER}/ in the first run's folder)"
    options.add_argument("--out", type=as_path, metavar="FOLDER", help=where)
    words = "also remove experts, by load, by gate x output norm, at random: the loss against the experts kept"
    options.add_argument("--prune", action="store_true", help=words)
    words = "write only this table: expert, gate, kept (with training's capacity) per character of the split and layer"
    options.add_argument("--routes", type=as_path, metavar="FILE", help=f"{words}; FILE.csv or FILE.parquet")
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    return finish(lambda: _inspect(options, shlex.join(["python", "-m", "switch_lm.inspect", *words])))


def _inspect(options: argparse.Namespace, command: str) -> int:
    # The tensors are small, so threads would only wait for each other.
    device = compute_on(options, threads=1, in_float64=True)
    if options.routes is not None:
        _require_table(options)
    from switch_lm.probe.pruning import UnprunableError, unprunable

    names = [options.run] if options.compare is None else [options.run, options.compare]
    opened = [open_model(name, options.outputs, options.average) for name in names]
    for checkpoint, model, _ in opened:
        if not model.config.num_switch_layers:
            raise UsageError(f"{checkpoint} is a dense model: there is no router or expert to inspect")
        if options.prune and (problem := unprunable(model)) is not None:
            raise UsageError(f"--prune: {checkpoint} has router={model.router_options.name}: {problem}")
    if options.routes is not None:
        return _write_routes(opened[0], options, device)
    folder = options.out or run_of(opened[0][0]) / FOLDER
    require_writable(folder / PAGE, option="--out FOLDER")
    try:
        inspections = _inspections(opened, options.data, device, prune=options.prune)
    except UnprunableError as error:
        raise UsageError(f"--prune: {error}") from error
    from switch_lm.inspection.contents import in_words
    from switch_lm.inspection.write import make, write  # with the pictures comes matplotlib

    files = make(inspections, command=command)
    with writing(folder, num_bytes=sum(map(len, files.values())), option="--out FOLDER"):
        write(files, folder)
    for inspection in inspections:
        for warning in inspection.warnings:
            print(harmless(f"warning: {inspection.name}: {warning}"), file=sys.stderr)
    print(isolated(harmless(in_words(inspections))))
    print(f"written: {folder / PAGE}, {folder}/pictures/*.png, {folder}/tables/*.csv", file=sys.stderr)
    return 0


def _require_table(options: argparse.Namespace) -> None:
    file = options.routes
    if file.suffix not in TABLES:
        raise UsageError(f"--routes {file}: the name must end in {' or '.join(TABLES)}")
    if options.prune or options.out is not None or options.compare is not None:
        raise UsageError("--routes writes one file: leave out --prune, --compare and --out")
    if file.suffix == TABLES[1]:
        require_extra("pyarrow", what=f"--routes {file}", otherwise="give a file that ends in .csv")


def _write_routes(opened: tuple[Path, SwitchLM, Header], options: argparse.Namespace, device: str) -> int:
    from switch_lm.probe.routes import routes
    from switch_lm.text.vocabulary import Vocabulary

    (_, model, header), file = opened, options.routes
    require_writable(file, option="--routes FILE")
    corpus, split = text_of(header, options.data)
    vocabulary, ids = Vocabulary(header.vocabulary, header.start), split.validation_ids(corpus)
    sizes = {"batch_size": header.config["data"]["batch_size"], "capacity_factor": model.config.capacity_factor}
    table = routes(model.to(device), vocabulary, ids, **sizes)
    with writing(file, num_bytes=table.nbytes, option="--routes FILE"):
        write_table(file, table)
    print(f"written: {file}", file=sys.stderr)
    return 0


def _inspections(
    opened: Sequence[tuple[Path, SwitchLM, Header]], data: Path | None, device: str, *, prune: bool
) -> list[Inspection]:
    from switch_lm.inspection.study import STAGES, Inspection, inspect
    from switch_lm.probe.progress import progress
    from switch_lm.text.divisions import divide, plays_of

    shortest = min(model.config.context_length for _, model, _ in opened)
    names = [run_name(checkpoint) for checkpoint, _, _ in opened]
    if len(set(names)) < len(names):  # two checkpoints of one run
        names = [f"{name}/{checkpoint.stem}" for name, (checkpoint, _, _) in zip(names, opened, strict=True)]
    inspections = list[Inspection]()
    with progress((STAGES + prune) * len(opened)) as say:
        for name, (checkpoint, model, header) in zip(names, opened, strict=True):
            corpus, split = text_of(header, data)
            ids, by = split.validation_ids(corpus).to(device), ("play", "speaker") if plays_of(corpus) else ()
            parts = {x: divide(corpus, split.validation, by=x) for x in by}
            sizes: dict[str, Any] = {"context_length": shortest, "divisions": parts, "prune": prune, "say": say}
            trained = (read_json(run_of(checkpoint) / RESULT) or {}).get("dropped_whole_run") or None  # nor if it was 0
            letter = f"{'AB'[len(inspections)]}: " * (len(opened) > 1)
            result = inspect(name, checkpoint, model.to(device), header, ids, **sizes)
            inspections.append(replace(result, letter=letter, training_dropped=trained))
    return inspections


if __name__ == "__main__":
    sys.exit(main())
