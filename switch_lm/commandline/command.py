"""What the commands on a trained model share: how they find it and its text, read numbers, write results and end."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switch_lm.commandline.help import command_parser
from switch_lm.commandline.process import environment, first_word
from switch_lm.commandline.signals import Signalled, ended_by_signals
from switch_lm.config.keys import ConfigError
from switch_lm.config.limits import num_cores
from switch_lm.config.paths import expanded
from switch_lm.config.plugins import PluginError
from switch_lm.config.reading import whole
from switch_lm.storage.files import as_json, remedy, replace_text
from switch_lm.storage.runs import CHECKPOINTS, LAST, OUTPUTS, RunError, find_run
from switch_lm.text.given import CorpusError

if TYPE_CHECKING:  # torch takes seconds to import: functions do it when they need it, so that --help is quick
    from torch import Tensor

    from switch_lm.model.transformer import SwitchLM
    from switch_lm.storage.checkpoint import Header
    from switch_lm.text.corpus import Corpus
    from switch_lm.text.splits import Split

MAX_SEED = 2**64 - 1  # what torch.Generator takes


class CommandError(Exception):
    """A command cannot do what was asked; the message says why and what to do."""


class UsageError(CommandError):
    """The command line asks for what cannot be: exit code 2."""


def require_extra(package: str, *, what: str, otherwise: str) -> None:
    """UsageError if a package of the extra `export` is not installed."""
    if find_spec(package) is None:
        fix = f"pip install 'switch-lm[export]', or {otherwise}"
        raise UsageError(f"{what}: the package {package} is not installed; {fix}")


def model_parser(
    name: str, about: str, examples: Mapping[str, str], *, computes: str | None = "a GPU if there is one, all cores"
) -> argparse.ArgumentParser:
    """A parser with the options that say which model is meant, and on what hardware it runs, by default `computes`.

    None: it has no options for hardware. The rest: as in `command_parser`.
    """
    options = command_parser(name, about, examples)
    options.add_argument("--run", metavar="NAME", help="run, SWEEP/JOB, run folder or .ckpt file (default: newest run)")
    options.add_argument(
        "--average",
        metavar="NAME",
        help="use this average of the weights, such as 0.999 (one of the run's optim.averages, from its last step)",
    )
    add_outputs(options)
    if computes is None:
        return options
    where = options.add_argument_group(f"hardware (default: {computes})")
    where.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), help="auto: a GPU if there is one; mps: experimental"
    )
    where.add_argument("--threads", type=whole_number(at_least=1, example=1), metavar="N", help="CPU threads")
    return options


def compute_on(
    options: argparse.Namespace, *, device: str = "auto", threads: int | None = None, in_float64: bool = False
) -> str:
    """Sets the threads and returns the device, cpu, cuda or mps: those of the command line, or else these defaults.

    `in_float64`: what is computed needs it, so that the CPU, with a word, takes the place of MPS, which has none.
    CommandError if the device that was asked for is not there.
    """
    import torch

    from switch_lm.model import devices

    torch.set_num_threads(options.threads or threads or min(torch.get_num_threads(), num_cores()))
    device = options.device or device
    device = devices.chosen() if device == "auto" else device
    if (problem := devices.refusal(device, key=f"--device {device}", fix="give --device cpu")) is not None:
        raise CommandError(problem)
    if device == "mps" and in_float64:
        print("on the CPU: this is computed in float64, which MPS does not have", file=sys.stderr)
        return "cpu"
    return device


def add_outputs(options: argparse.ArgumentParser) -> None:
    where = f"the folder in which runs are found by name (default: {OUTPUTS})"
    options.add_argument("--outputs", type=as_path, default=OUTPUTS, metavar="FOLDER", help=where)


def open_model(name: str | None, outputs: Path, average: str | None) -> tuple[Path, SwitchLM, Header]:
    """The checkpoint that `--run`, `--outputs` and `--average` mean, named on stderr, and what is in it."""
    from switch_lm.storage.checkpoint import find_checkpoint, read_model

    run = find_run(name, outputs)
    path = find_checkpoint(run if average is None or run.is_file() else run / CHECKPOINTS / LAST)
    print(f"model: {path}" + (f", average {average} of the weights" if average else ""), file=sys.stderr)
    return path, *read_model(path, average=average)


def validation_ids(header: Header, file: Path | None) -> Tensor:
    """The validation split of the text that the model was trained on: `file`, or where the run found it."""
    corpus, split = text_of(header, file)
    return split.validation_ids(corpus)


def text_of(header: Header, file: Path | None) -> tuple[Corpus, Split]:
    """That text, and how the run split it."""
    from switch_lm.text.corpus import load_corpus
    from switch_lm.text.splits import Split
    from switch_lm.text.windows import validation_too_short

    data = {"text": "tiny_shakespeare", "split": "standard", "hold_out": None} | header.config["data"]
    given = file or (Path(data["path"]) if data["path"] else None)
    try:
        corpus = load_corpus(data_dir=Path(data["dir"]), path=given, text=data["text"])
    except CorpusError as error:
        raise CommandError(f"{error} (for this command: --data FILE)") from error
    if corpus.sha256 != header.corpus_sha256:
        rule = f"the model was trained on the text with sha256 {header.corpus_sha256}"
        fix = "give that text with --data FILE"
        raise CommandError(f"{corpus.source} has sha256 {corpus.sha256}; {rule}, and losses of two texts differ; {fix}")
    if data.get("unused_characters") == "keep":
        corpus = corpus.knowing(header.vocabulary)
    if corpus.characters != header.vocabulary:
        rule = "this model is of an older version, which read them as characters: train it again"
        raise CommandError(f"{corpus.source} has byte order marks, which are now left out; {rule}")
    split = Split.of(corpus, split=data["split"], hold_out=data["hold_out"])
    if (problem := validation_too_short(sum(map(len, split.validation)))) is not None:
        raise CommandError(problem)
    return corpus, split


def write_json(content: dict[str, Any], path: Path, *, quiet: bool = False) -> None:
    """Writes a command's results; CommandError if the disk does not take them."""
    write_text(as_json(content), path, option="--json FILE", quiet=quiet)


def write_text(text: str, path: Path, *, option: str, quiet: bool = False) -> None:
    """Replaces `path` as a whole and, unless `quiet`, names it on stderr; CommandError if the disk does not take it."""
    with writing(path, num_bytes=len(text.encode()), option=option):
        replace_text(path, text)
    if not quiet:
        print(f"written: {path}", file=sys.stderr)


def figure(value: float, width: int, decimals: int) -> str:
    """A number of a table, which keeps its column however large it is: 1.5432, 2.10e+45, inf."""
    text = f"{value:.{decimals}f}"
    return f"{text if len(text) < (width or 12) else f'{value:.2e}':>{width}}"


@contextmanager
def writing(path: Path, *, num_bytes: int, option: str) -> Iterator[None]:
    """Turns an OSError of the disk, such as a full one, into a CommandError with path, size and remedy."""
    try:
        yield
    except OSError as error:
        problem = f"{path} ({num_bytes:,} bytes) could not be written: {error.strerror or error}"
        fix = f"{room}, or" if (room := remedy(error)) else ";"
        raise CommandError(f"{problem}{fix} give another with {option}") from error


def require_writable(file: Path, *, option: str) -> None:
    """Makes the file's folder before anything is measured; CommandError, with the option, if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.name or file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        rule = "the results must go to a file in a folder that can be written"
        raise CommandError(f"{file}: {error.strerror}; {rule}; give another with {option}") from error


@environment()
def finish(command: Callable[[], int]) -> int:
    """The exit code: 1 for what a user can fix, 2 for usage, plugins and other versions, 128 + n for signal n."""
    try:
        with ended_by_signals():
            first_word()
            from switch_lm.model.devices import no_memory
            from switch_lm.storage.checkpoint import CheckpointError, OtherVersionError
            from switch_lm.training.process_state import restored

            try:
                with restored():
                    return command()
            except (CommandError, RunError, CheckpointError, CorpusError) as error:
                print(error, file=sys.stderr)
                return 2 if isinstance(error, UsageError | OtherVersionError) else 1
            except PluginError as error:
                print(error, file=sys.stderr)
                return 2
            except (MemoryError, RuntimeError) as error:
                if (problem := no_memory(error)) is None:
                    raise
                print(f"{problem}; use a smaller input, or free memory", file=sys.stderr)
                return 1
    except Signalled as stop:
        return stop.code


def whole_number(*, at_least: int, at_most: int | None = None, example: int) -> Callable[[str], int]:
    """Reads a whole number within bounds, as 1000 or 1e3; argparse adds the option's name to the message."""

    def read(text: str) -> int:
        bounds = f"{at_least} or more" if at_most is None else f"{at_least} to {at_most}"
        try:
            value = whole(text)
        except ValueError:
            value = at_least - 1
        if value < at_least or (at_most is not None and value > at_most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {bounds}; give for example {example}")
        return value

    return read


def as_path(text: str) -> Path:
    """Reads a path; the shell leaves a `~` in --option=~/file as it is."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(text: str) -> float:
    """Reads a number; any other text becomes nan, which lies within no bounds."""
    try:
        return float(text)
    except ValueError:
        return math.nan
