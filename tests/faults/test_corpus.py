"""Every source of the text ends with the right bytes or with one message that says what to do."""

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mirror_servers import (
    FLIPPED,
    FLIPPED_SHA256,
    GOOD,
    GOOD_SHA256,
    Serve,
    closed_port,
    offline_source,
    only_file,
    refusal,
    reply,
)
from mirror_servers import a_small_made_up_world as a_small_made_up_world
from mirror_servers import serve as serve

from switch_lm import corpus as corpus_command
from switch_lm.text import corpus, mirrors, plays
from switch_lm.text.corpus import load_corpus


def test_a_download_is_kept_byte_for_byte_and_used_again_with_no_request(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror, folder = serve(reply(GOOD)), tmp_path / "new" / "data"
    with caplog.at_level(logging.INFO, logger="switch_lm"):
        first, second = load_corpus(data_dir=folder), load_corpus(data_dir=folder)
    assert (first.source, second.source) == (mirror.url, str(folder / corpus.TINY_SHAKESPEARE.file))
    assert first.text() == second.text() == GOOD.decode()  # "\r\n" included
    assert first.sha256 == GOOD_SHA256
    assert only_file(folder) == GOOD
    assert (mirror.requests, len(caplog.records)) == (1, 1)


@pytest.mark.row(10)
def test_a_flipped_bit_is_refused_and_the_next_source_is_tried(serve: Serve, tmp_path: Path) -> None:
    bad, good = serve(reply(FLIPPED)), serve(reply(GOOD))
    assert load_corpus(data_dir=tmp_path).source == good.url
    assert bad.requests == 1  # the whole body arrived, so a second attempt would give the same
    assert only_file(tmp_path) == GOOD


@pytest.mark.row(10)
def test_a_flipped_bit_everywhere_shows_both_hashes_and_leaves_no_file(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(reply(FLIPPED))
    offline_source(monkeypatch, FLIPPED)
    message = refusal(tmp_path)
    assert message.count(FLIPPED_SHA256) == message.count(GOOD_SHA256) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row(13)
def test_with_no_network_the_offline_source_comes_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "MIRRORS", (closed_port(),) * 3)
    offline_source(monkeypatch, GOOD)
    start = time.monotonic()
    assert load_corpus(data_dir=tmp_path).source == plays.SOURCE
    assert time.monotonic() - start < mirrors.NETWORK_SECONDS
    assert only_file(tmp_path) == GOOD


def test_offline_asks_no_mirror(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = serve(reply(GOOD))
    offline_source(monkeypatch, GOOD)
    assert load_corpus(data_dir=tmp_path, offline=True).source == plays.SOURCE
    assert mirror.requests == 0


@pytest.mark.row(13)
def test_when_all_fail_one_message_names_each_source_with_its_reason_and_the_two_fixes(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, silent = serve(reply(b"", status=403)), closed_port()
    monkeypatch.setattr(mirrors, "MIRRORS", (refused.url, silent))
    copy, first, second, offline, way_out = refusal(tmp_path).splitlines()[1:]
    assert copy.strip() == f"{tmp_path / corpus.TINY_SHAKESPEARE.file}: no copy there"
    assert first.strip().startswith(f"{refused.url}: HTTPError: 403")
    assert second.strip().startswith(f"{silent}: ConnectionError: ")
    assert second.endswith("Connection refused (attempt 3 of 3)")
    assert offline.strip() == f"{plays.SOURCE}: the package is not installed"
    assert "data.path=FILE" in way_out
    assert "SWITCH_LM_DATA=FILE" in way_out


@pytest.mark.row(12)
@pytest.mark.parametrize("wrong", [GOOD[:-1], FLIPPED, b""], ids=["truncated", "changed", "empty"])
def test_a_wrong_copy_is_fetched_again(wrong: bytes, serve: Serve, tmp_path: Path) -> None:
    mirror = serve(reply(GOOD))
    (tmp_path / corpus.TINY_SHAKESPEARE.file).write_bytes(wrong)
    assert load_corpus(data_dir=tmp_path).source == mirror.url
    assert only_file(tmp_path) == GOOD


@pytest.mark.row(12)
def test_a_wrong_copy_that_cannot_be_fetched_again_is_named_with_both_hashes(tmp_path: Path) -> None:
    (tmp_path / corpus.TINY_SHAKESPEARE.file).write_bytes(FLIPPED)
    copy = refusal(tmp_path).splitlines()[1]
    assert str(tmp_path / corpus.TINY_SHAKESPEARE.file) in copy
    assert FLIPPED_SHA256 in copy
    assert GOOD_SHA256 in copy


FETCH = """
import sys
from pathlib import Path
from switch_lm.text import corpus, mirrors
url, size, sha256, folder = sys.argv[1:]
mirrors.MIRRORS, corpus.TINY_SHAKESPEARE = (url,), corpus.Known("tiny_shakespeare.txt", int(size), sha256)
print(corpus.load_corpus(data_dir=Path(folder)).source)
"""


@pytest.mark.row(14)
def test_four_processes_at_once_leave_one_good_file_and_nothing_else(serve: Serve, tmp_path: Path) -> None:
    all_four = threading.Barrier(4, timeout=8)

    def when_all_wait(handler: BaseHTTPRequestHandler) -> None:
        all_four.wait()
        reply(GOOD)(handler)

    mirror, folder = serve(when_all_wait), tmp_path / "data"
    command = [sys.executable, "-c", FETCH, mirror.url, str(len(GOOD)), GOOD_SHA256, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(corpus.__file__).parents[2])}
    fetching = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    answers = [process.communicate(timeout=9) for process in fetching]
    assert answers == [(f"{mirror.url}\n".encode(), b"")] * 4
    assert mirror.requests == 4
    assert only_file(folder) == GOOD


@pytest.mark.row(15)
def test_a_file_where_the_data_folder_should_be_is_reported_before_any_request(serve: Serve, tmp_path: Path) -> None:
    mirror, blocked = serve(reply(GOOD)), tmp_path / "data"
    blocked.write_text("in the way")
    assert f"{blocked}: File exists; the data folder must be a folder that can be written" in refusal(blocked)
    assert f"{blocked / 'in'}: Not a directory; the data folder" in refusal(blocked / "in")
    assert mirror.requests == 0


@pytest.mark.row(15)
def test_a_read_only_folder_is_reported_before_any_request_but_its_good_copy_is_used(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:  # by hand, as permissions do not bind root
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    mirror = serve(reply(GOOD))
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert f"{tmp_path}: Read-only file system; the data folder must" in refusal(tmp_path)
    (tmp_path / corpus.TINY_SHAKESPEARE.file).write_bytes(GOOD)
    assert load_corpus(data_dir=tmp_path).text() == GOOD.decode()
    assert mirror.requests == 0


@pytest.mark.row(3)
def test_a_full_disk_leaves_no_file_and_names_the_path_and_the_size(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    serve(reply(GOOD))
    monkeypatch.setattr(os, "fsync", full)
    message = refusal(tmp_path)
    assert f"{tmp_path / corpus.TINY_SHAKESPEARE.file}: No space left on device; " in message
    assert f"{len(GOOD)} bytes" in message
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / corpus.TINY_SHAKESPEARE.file).mkdir()
    assert f"{tmp_path / corpus.TINY_SHAKESPEARE.file}: Is a directory; " in refusal(tmp_path)


def test_a_text_of_your_own_comes_with_its_own_hash_and_no_copy(tmp_path: Path) -> None:
    body = "Grüße,\r\nWelt\n".encode()
    mine = tmp_path / "mine.txt"
    mine.write_bytes(body)
    got = load_corpus(data_dir=tmp_path / "data", path=mine)
    assert (got.text(), got.sha256, got.source) == (body.decode(), hashlib.sha256(body).hexdigest(), str(mine))
    assert not (tmp_path / "data").exists()


def test_the_environment_gives_the_file_unless_a_path_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, environment = tmp_path / "path.txt", tmp_path / "environment.txt"
    path.write_text("path")
    environment.write_text("environment")
    monkeypatch.setenv("SWITCH_LM_DATA", str(environment))
    assert load_corpus(data_dir=tmp_path).text() == "environment"
    assert load_corpus(data_dir=tmp_path, path=path).text() == "path"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        pytest.param(lambda file: None, "No such file or directory", id="missing"),
        pytest.param(lambda file: file.mkdir(), "Is a directory", id="a folder"),
        pytest.param(lambda file: file.write_bytes(b""), "the file is empty", id="empty"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_rule_and_the_fix(
    make: Callable[[Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.txt"
    make(file)
    rule = "must name a UTF-8 text file that is not empty"
    assert refusal(tmp_path, file).startswith(f"data.path={file}: {what}; data.path {rule}; give data.path=FILE ")
    monkeypatch.setenv("SWITCH_LM_DATA", str(file))
    assert refusal(tmp_path).startswith(f"SWITCH_LM_DATA={file}: {what}; SWITCH_LM_DATA {rule}; give SWITCH_LM_DATA=")


def test_the_command_prints_path_source_and_hash_or_fails_with_the_message(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["corpus", "--data-dir", str(tmp_path)])
    assert corpus_command.main() == 1
    assert "give the file yourself" in capsys.readouterr().err
    mirror = serve(reply(GOOD))
    assert corpus_command.main() == 0
    words = capsys.readouterr().out.split()
    assert words == ["path", str(tmp_path / corpus.TINY_SHAKESPEARE.file), "source", mirror.url, "sha256", GOOD_SHA256]
