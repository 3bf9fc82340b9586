"""The text file that was given: what it must be, and what to do if it is something else."""

import errno
import os
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from switch_lm.text.formats import HEAD_BYTES, Format, other_format

FILE_VARIABLE = "SWITCH_LM_DATA"


class CorpusError(Exception):
    """The text is not available; the message says why and what to do."""


class TextError(CorpusError):
    """The text that was asked for cannot be trained on; the message names the setting, the rule and what to do."""


def home(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises for an unknown user


def require_given(path: str | None, text: str) -> None:
    """`require_text_file` for what `data.path` or else, in place of Tiny Shakespeare, SWITCH_LM_DATA names, if any."""
    if given := path or (os.environ.get(FILE_VARIABLE) if text == "tiny_shakespeare" else None):
        require_text_file(home(given), name="data.path" if path else FILE_VARIABLE)


def require_text_file(path: Path, *, name: str) -> None:
    """Checks quickly that `path` is a UTF-8 text file that can be read again, by its kind and its first bytes.

    TextError names the setting `name` with its value, what the file is, and what to do. torch is not needed.
    """
    with opened(path, name=name) as file:
        head = file.read(HEAD_BYTES)
        if (known := other_format(head, whole=len(head) < HEAD_BYTES)) is not None:
            raise not_text(path, known, name=name)


@contextmanager
def opened(path: Path, *, name: str) -> Iterator[BinaryIO]:
    """The file, which is regular and not empty."""
    fix = f"give {name}=FILE another file, or leave it out for Tiny Shakespeare"
    try:
        kind = path.stat().st_mode
        if _is_stream(path, kind):
            raise TextError(
                f"{name}={path}: not a file but a stream, which can be read only once: the model could not be "
                f"evaluated; {rule_of(name)}; write it to a file first (such as: cat A B > FILE), and give {name}=FILE"
            )
        if stat.S_ISDIR(kind):
            raise TextError(
                f"{name}={path}: {os.strerror(errno.EISDIR)}; {rule_of(name)}; {fix}; to train on all texts in it: "
                f"cat {shlex.quote(shell_path(path))}/*.txt > FILE"
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise TextError(f"{name}={path}: the file is empty; {rule_of(name)}; {fix}")
            file.seek(0)
            yield file
    except OSError as error:
        if str(path) == "-":
            raise TextError(
                f"{name}=-: standard input can be read only once; {rule_of(name)}; write it to a file first "
                f"(such as: cat > FILE), and give {name}=FILE"
            ) from None
        raise TextError(f"{name}={path}: {error.strerror or error}; {rule_of(name)}; {fix}") from error


def _is_stream(path: Path, kind: int) -> bool:
    """Pipes, devices, sockets, and whatever is named by its number among the open files of a process."""
    of_process = str(path) == "/dev/stdin" or re.fullmatch(r"/dev/fd|/proc/.*/fd", str(path.absolute().parent))
    return bool(of_process) or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def rule_of(name: str) -> str:
    return f"{name} must name a UTF-8 text file that is not empty"


def not_text(path: Path, known: Format, *, name: str) -> TextError:
    file, text = shell_path(path), shell_path(Path(f"{path}.txt"))
    command = known.command.format(file=shlex.quote(file), text=shlex.quote(text))
    return TextError(f"{name}={path}: {known.what}; {rule_of(name)}; convert it with: {command}")


def shell_path(path: Path) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
