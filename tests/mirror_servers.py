"""Mirrors on this machine with given answers, and a made-up text in place of Tiny Shakespeare."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from switch_lm.text import corpus, mirrors, plays
from switch_lm.text.corpus import load_corpus
from switch_lm.text.given import FILE_VARIABLE, CorpusError

GOOD = b"A made-up line.\r\nAnother one.\n" * 40
GOOD_SHA256 = hashlib.sha256(GOOD).hexdigest()
FLIPPED = bytes([GOOD[0] ^ 1]) + GOOD[1:]
FLIPPED_SHA256 = hashlib.sha256(FLIPPED).hexdigest()
Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror(ThreadingHTTPServer):
    """Gives one answer a request, the last for ever."""

    daemon_threads, block_on_close = True, False

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = list(answers), 0
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/text"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Mirror)
        answer = self.server.answers[min(self.server.requests, len(self.server.answers) - 1)]
        self.server.requests += 1
        answer(self)

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


def reply(body: bytes, *, status: int = 200, claim: int | None = None, kind: str = "text/plain") -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        if claim != -1:  # -1: no length at all, the body ends with the connection
            handler.send_header("Content-Length", str(len(body) if claim is None else claim))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    assert isinstance(handler.server, Mirror)
    reply(b"", claim=len(GOOD))(handler)
    try:
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(b"A")
    except OSError:
        return


Serve = Callable[..., Mirror]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a mirror with the given answers and puts it behind those started before."""
    started: list[Mirror] = []

    def start(*answers: Answer) -> Mirror:
        mirror = Mirror(*answers)
        threading.Thread(target=mirror.serve_forever, args=(0.005,), daemon=True).start()
        started.append(mirror)
        monkeypatch.setattr(mirrors, "MIRRORS", tuple(each.url for each in started))
        return mirror

    yield start
    for mirror in started:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


@pytest.fixture(autouse=True)
def a_small_made_up_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of our own, no mirror, no package, short times."""
    known = corpus.Known(corpus.TINY_SHAKESPEARE.file, len(GOOD), GOOD_SHA256)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE", known)
    times = {"CONNECT_SECONDS": 0.3, "READ_SECONDS": 0.3, "MIRROR_SECONDS": 1.0, "NETWORK_SECONDS": 1.5}
    for name, value in {"MIRRORS": (), **times, "BACKOFF_SECONDS": 0.01}.items():
        monkeypatch.setattr(mirrors, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    offline_source(monkeypatch, None)


def offline_source(monkeypatch: pytest.MonkeyPatch, body: bytes | None) -> None:
    def rebuild(size: int) -> bytes:
        if body is None:
            raise plays.PlaysError("the package is not installed")
        return body

    monkeypatch.setattr(plays, "rebuild_plays", rebuild)


def only_file(folder: Path) -> bytes:
    assert [each.name for each in folder.iterdir()] == [corpus.TINY_SHAKESPEARE.file]
    return (folder / corpus.TINY_SHAKESPEARE.file).read_bytes()


def refusal(data_dir: Path, path: Path | None = None) -> str:
    with pytest.raises(CorpusError) as caught:
        load_corpus(data_dir=data_dir, path=path)
    return str(caught.value)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/text"
