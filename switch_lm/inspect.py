"""What do the experts do? `python -m switch_lm.inspect --run NAME [--compare NAME]`: a page, pictures, tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import (
    CommandError,
    finish,
    model_parser,
    open_model,
    require_writable,
    validation_ids,
)
from switch_lm.storage.runs import run_name, run_of

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from collections.abc import Callable

    from switch_lm.inspection.study import Inspection
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.storage.checkpoint import Header

FOLDER, PAGE = "inspect", "inspect.html"


class Opened(NamedTuple):
    """A trained model, and where it lies."""

    checkpoint: Path
    model: SwitchLM
    header: Header


def parser() -> argparse.ArgumentParser:
    about = (
        "Shows what a trained model's routers and experts do: which characters go where and what explains it, who is "
        "dropped, whether the router was right, whether the experts differ, and when they specialised."
    )
    options = model_parser(prog="python -m switch_lm.inspect", about=about)
    options.add_argument("--compare", metavar="NAME", help="a second run, to be put beside the first")
    options.add_argument("--data", type=Path, metavar="FILE", help="the text, if it is not where the run found it")
    where = f"where to write (default: {FOLDER}/ in the first run's folder)"
    options.add_argument("--out", type=Path, metavar="FOLDER", help=where)
    return options


@survive_closed_pipe()
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    return finish(lambda: _inspect(options, shlex.join(["python", "-m", "switch_lm.inspect", *words])))


def _inspect(options: argparse.Namespace, command: str) -> int:
    import torch

    torch.set_num_threads(1)  # the tensors are small, so threads would only wait for each other
    names = [options.run] if options.compare is None else [options.run, options.compare]
    opened = [Opened(*open_model(name, options.outputs)) for name in names]
    for one in opened:
        if not one.model.config.num_switch_layers:
            raise CommandError(f"{one.checkpoint} is a dense model: there is no router or expert to inspect")
    folder = options.out or run_of(opened[0].checkpoint) / FOLDER
    require_writable(folder / PAGE, option="--out FOLDER")
    inspections = _inspections(opened, options.data)
    from switch_lm.inspection.write import write  # with the pictures comes matplotlib

    for inspection in inspections:
        _print_findings(inspection)
    page = write(inspections, folder, command=command)
    print(f"written: {page}, {folder}/pictures/*.png, {folder}/tables/*.csv", file=sys.stderr)
    return 0


def _inspections(opened: Sequence[Opened], data: Path | None) -> list[Inspection]:
    import torch

    from switch_lm.inspection.study import STAGES, inspect

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shortest = min(one.model.config.context_length for one in opened)
    names = [run_name(one.checkpoint) for one in opened]
    if len(set(names)) < len(names):  # two checkpoints of one run
        names = [f"{name}/{one.checkpoint.stem}" for name, one in zip(names, opened, strict=True)]
    inspections = []
    with _progress(STAGES * len(opened)) as (say, stage):
        for name, one in zip(names, opened, strict=True):
            ids = validation_ids(one.header, data).to(device)
            inspections.append(
                inspect(
                    name, one.checkpoint, one.model.to(device), one.header, ids, context_length=shortest, say=say,
                    stage=stage,
                )
            )  # fmt: skip
    return inspections


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on stderr, gone at the end: what says what is done now, and what ends a stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text), lambda: bar.advance(task)


def _print_findings(inspection: Inspection) -> None:
    for warning in inspection.warnings:
        print(f"warning: {inspection.name}: {warning}", file=sys.stderr)
    print(f"\n{inspection.name}")
    for question, sentences in inspection.findings().items():
        print(f"\n{question}")
        print("\n".join(f"- {sentence}" for sentence in sentences))


if __name__ == "__main__":
    sys.exit(main())
