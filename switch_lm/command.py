"""What the commands on a trained model share: how they find it and its text, read numbers, write results and end."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.corpus import CorpusError
from switch_lm.files import replace_text
from switch_lm.runs import OUTPUTS, RunError, find_run

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from torch import Tensor

    from switch_lm.checkpoint import Header
    from switch_lm.model import SwitchLM

MAX_SEED = 2**64 - 1  # what torch.Generator takes


class CommandError(Exception):
    """A command can not do what was asked; the message says why and what to do."""


def model_parser(*, prog: str, about: str) -> argparse.ArgumentParser:
    """A parser with the options that say which model is meant."""
    options = argparse.ArgumentParser(prog=prog, description=about)
    options.add_argument("--run", metavar="NAME", help="run, SWEEP/JOB, run folder or .ckpt file (default: newest run)")
    where = f"where runs are looked for (default: {OUTPUTS})"
    options.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER", help=where)
    return options


def open_model(name: str | None, outputs: Path) -> tuple[Path, SwitchLM, Header]:
    """The checkpoint that `--run` and `--outputs` mean, told on stderr, and what is in it."""
    from switch_lm.checkpoint import find_checkpoint, read_model

    path = find_checkpoint(find_run(name, outputs))
    print(f"model: {path}", file=sys.stderr)
    return path, *read_model(path)


def validation_ids(header: Header, file: Path | None) -> Tensor:
    """The validation split of the text that the model was trained on: `file`, or where the run found it."""
    from switch_lm.corpus import load_corpus
    from switch_lm.vocab import Vocabulary
    from switch_lm.windows import split

    data = header.config["data"]
    given = file or (Path(data["path"]) if data["path"] else None)
    try:
        corpus = load_corpus(data_dir=Path(data["dir"]), path=given)
    except CorpusError as error:
        raise CommandError(f"{error} (for this command: --data FILE)") from error
    if corpus.sha256 != header.corpus_sha256:
        rule = f"the model was trained on the text with sha256 {header.corpus_sha256}"
        fix = "give that text with --data FILE"
        raise CommandError(f"{corpus.source} has sha256 {corpus.sha256}; {rule}, and losses of two texts differ; {fix}")
    return split(Vocabulary(header.vocabulary).encode(corpus.text))[1]


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes a command's results, and tells where on stderr; CommandError if they can't be written."""
    try:
        replace_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        rule = "the results must go to a file in a folder that can be written"
        raise CommandError(f"{path}: {error.strerror}; {rule}; give another with --json FILE") from error
    print(f"written: {path}", file=sys.stderr)


def require_writable(file: Path, *, option: str) -> None:
    """Before anything is measured: makes the file's folder; CommandError, naming the option, if it can't be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.name or file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        rule = "the results must go to a file in a folder that can be written"
        raise CommandError(f"{file}: {error.strerror}; {rule}; give another with {option}") from error


def finish(command: Callable[[], int]) -> int:
    """The exit code of a command: 1 and one message for what a user can fix, 130 for Ctrl-C."""
    try:
        from switch_lm.checkpoint import CheckpointError

        try:
            return command()
        except (CommandError, RunError, CheckpointError, CorpusError) as error:
            print(error, file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 130


def whole_number(*, at_least: int, at_most: int | None = None, example: int) -> Callable[[str], int]:
    """Reads a whole number within bounds; argparse adds the option's name to the message."""

    def read(text: str) -> int:
        bounds = f"{at_least} or more" if at_most is None else f"{at_least} to {at_most}"
        if not text.isdecimal() or int(text) < at_least or (at_most is not None and int(text) > at_most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {bounds}; give for example {example}")
        return int(text)

    return read


def number(text: str) -> float:
    """Reads a number; any other text becomes nan, which lies within no bounds."""
    try:
        return float(text)
    except ValueError:
        return math.nan
