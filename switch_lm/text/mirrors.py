"""Downloads Tiny Shakespeare over HTTPS: the mirrors, the number of attempts and the time limits."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn"
MIRRORS: tuple[str, ...] = (
    f"{_CHAR_RNN}/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    f"{_CHAR_RNN}/master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)
# In seconds. One mirror gets only a part of the total, so that a mirror that stalls leaves time for another.
CONNECT_SECONDS, READ_SECONDS = 3.0, 5.0
MIRROR_SECONDS, NETWORK_SECONDS = 10.0, 20.0
ATTEMPTS, BACKOFF_SECONDS = 3, 0.5
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})

Mismatch = Callable[[bytes | bytearray], str]  # describes how bytes differ from the text


class MirrorError(Exception):
    """Why one mirror could not be used."""


class _TransientError(MirrorError):
    """An error that may not occur at the next attempt."""


def downloads(*, size: int, mismatch: Mismatch) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each mirror's URL, and a function that fetches `size` bytes from it, unverified, or raises MirrorError."""
    end = time.monotonic() + NETWORK_SECONDS
    for url in MIRRORS:
        yield url, partial(_download, url, size=size, mismatch=mismatch, end=end)


def _download(url: str, *, size: int, mismatch: Mismatch, end: float) -> bytes:
    """Runs in a thread that is abandoned at the limit: timeouts of requests bound neither DNS nor a slow trickle."""
    seconds = min(MIRROR_SECONDS, end - time.monotonic())
    if seconds <= 0:
        raise MirrorError(f"not tried: the {NETWORK_SECONDS:g} seconds for all mirrors were used up")
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_attempts(partial(_get, url, size=size, mismatch=mismatch), end=time.monotonic() + seconds))
        except Exception as error:  # of any kind: the next source is tried and the reason reported
            answers.put(error)

    threading.Thread(target=work, name="corpus download", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise MirrorError(f"no complete answer in {seconds:.3g} seconds") from None
    if isinstance(answer, bytes):
        return answer
    raise answer if isinstance(answer, MirrorError) else MirrorError(_reason(answer)) from answer


def _attempts(get: Callable[[], bytes], *, end: float) -> bytes:
    attempt = 1
    while True:
        try:
            return get()
        except _TransientError as error:
            pause = BACKOFF_SECONDS * 2 ** (attempt - 1)
            if attempt == ATTEMPTS or time.monotonic() + pause > end:
                raise MirrorError(f"{error} (attempt {attempt} of {ATTEMPTS})") from error
        time.sleep(pause)
        attempt += 1


def _get(url: str, *, size: int, mismatch: Mismatch) -> bytes:
    import requests  # here, so that a run that has its text does not wait for the import

    body = bytearray()
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            for hop in [*response.history, response]:
                if url.startswith("https:") and not hop.url.startswith("https:"):
                    raise MirrorError(f"redirected to {hop.url}, which is not HTTPS")
            if response.status_code in RETRIED_STATUS:
                raise _TransientError(f"HTTP {response.status_code}")
            response.raise_for_status()
            for chunk in response.iter_content(1 << 16):
                body += chunk
                if len(body) > size:
                    raise MirrorError(f"not the text: more than {size} bytes")
    except requests.Timeout as error:
        raise MirrorError(_reason(error)) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _TransientError(_reason(error)) from error
    if len(body) < size:
        raise _TransientError(mismatch(body))
    return bytes(body)


def _reason(error: Exception) -> str:
    """The innermost cause that requests reports: its own message repeats the URL and the retries of urllib3."""
    inner = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(inner, 'reason', inner)}"
