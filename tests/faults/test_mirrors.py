"""Temporary faults of a mirror are tried again, lasting ones are not, and the time for all mirrors is bounded."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mirror_servers import GOOD, Answer, Serve, drip, drop, only_file, refusal, reply
from mirror_servers import a_small_made_up_world as a_small_made_up_world
from mirror_servers import serve as serve

from switch_lm.text import mirrors
from switch_lm.text.corpus import load_corpus

REAL_MIRRORS = mirrors.MIRRORS


def test_every_mirror_is_https() -> None:
    assert len(REAL_MIRRORS) >= 2
    assert all(url.startswith("https://") for url in REAL_MIRRORS)


@pytest.mark.row(11)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(reply(GOOD[:99], claim=len(GOOD)), id="a body shorter than it claims"),
        pytest.param(reply(GOOD[:99], claim=-1), id="a body with no length, cut"),
        pytest.param(drop, id="a dropped connection"),
        pytest.param(reply(b"oh", status=500), id="HTTP 500"),
        pytest.param(reply(b"later", status=429), id="HTTP 429"),
    ],
)
def test_a_temporary_fault_is_tried_again_up_to_three_times(fault: Answer, serve: Serve, tmp_path: Path) -> None:
    lasting, passing = serve(fault), serve(fault, fault, reply(GOOD))
    assert load_corpus(data_dir=tmp_path).source == passing.url
    assert (lasting.requests, passing.requests) == (3, 3)
    assert only_file(tmp_path) == GOOD


@pytest.mark.row(11)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(reply(b"<html>" + b"sign in " * 9999, kind="text/html"), id="an HTML page longer than the text"),
        pytest.param(reply(b"<html>".ljust(len(GOOD)), kind="text/html"), id="an HTML page as long as the text"),
        pytest.param(reply(b"gone", status=404), id="HTTP 404"),
    ],
)
def test_a_lasting_fault_is_not_tried_again(fault: Answer, serve: Serve, tmp_path: Path) -> None:
    bad, good = serve(fault), serve(reply(GOOD))
    assert load_corpus(data_dir=tmp_path).source == good.url
    assert bad.requests == 1


@pytest.mark.row(11)
def test_a_short_html_page_with_200_is_never_used(serve: Serve, tmp_path: Path) -> None:
    serve(reply(b"<html>sign in</html>", kind="text/html"))
    assert "not the text: got 20 bytes" in refusal(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row(11)
def test_an_endless_body_is_cut_off_at_the_size_of_the_text(serve: Serve, tmp_path: Path) -> None:
    def without_end(handler: BaseHTTPRequestHandler) -> None:
        reply(GOOD * 99, claim=-1)(handler)
        drip(handler)

    serve(without_end)
    assert f"not the text: more than {len(GOOD)} bytes" in refusal(tmp_path)


@pytest.mark.row(11)
def test_a_slow_trickle_is_abandoned_for_the_next_mirror_in_bounded_time(serve: Serve, tmp_path: Path) -> None:
    slow, good = serve(drip), serve(reply(GOOD))
    start = time.monotonic()
    assert load_corpus(data_dir=tmp_path).source == good.url
    assert time.monotonic() - start < mirrors.NETWORK_SECONDS
    assert slow.requests == 1


@pytest.mark.row(11)
def test_all_mirrors_together_are_bounded(serve: Serve, tmp_path: Path) -> None:
    servers = [serve(drip) for _ in range(4)]
    start = time.monotonic()
    message = refusal(tmp_path)
    assert time.monotonic() - start < mirrors.NETWORK_SECONDS + 0.5
    assert [mirror.requests for mirror in servers] == [1, 1, 0, 0]
    assert message.count("no complete answer in") == message.count("were used up") == 2


@pytest.mark.row(13)
def test_a_dns_look_up_that_stalls_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def hang(*_: object, **__: object) -> None:
        done.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(mirrors, "MIRRORS", ("http://name.invalid/text",))
    start = time.monotonic()
    assert "name.invalid/text: no complete answer in" in refusal(tmp_path)
    assert time.monotonic() - start < mirrors.NETWORK_SECONDS
    done.set()
