"""Who has a folder: flock where there is one; otherwise, and between machines, a file that its owner keeps changing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from switch_lm.config.keys import ConfigError
from switch_lm.storage import locks
from switch_lm.storage.locks import LEASE, Lock
from switch_lm.storage.run_folder import RunFolder

HOLDER = """
import sys, threading
from pathlib import Path
from switch_lm.storage.locks import Lock
lock = Lock(Path(sys.argv[1]), "one at a time")
print("has it", flush=True)
threading.Event().wait()
"""


def granted(*_: int) -> None:
    """As on a share whose locks do not reach other machines."""


def refused(*_: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        yield process
        process.kill()


@pytest.mark.parametrize("flock", [None, refused, granted])
def test_a_folder_is_its_owners_until_kill_9_and_then_free_at_once(
    flock: Callable[..., None] | None,
    holder: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock or fcntl.flock)
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    with pytest.raises(ConfigError, match=rf"another process trains there at the moment \(process {holder.pid} on"):
        Lock(tmp_path, "one at a time")
    assert RunFolder(tmp_path).nothing_to_lose  # a lock is no content
    monkeypatch.setattr(locks, "LOCK_SECONDS", 5.0)
    holder.send_signal(signal.SIGKILL)  # and nobody has asked for its exit code yet
    began = time.monotonic()
    with Lock(tmp_path, "one at a time"):
        assert time.monotonic() - began < 5 and "waiting" not in capsys.readouterr().err
        assert json.loads((tmp_path / LEASE).read_bytes())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flock", [refused, granted])
def test_another_machines_folder_is_watched_and_free_once_its_lock_file_stands_still(
    flock: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    with Lock(tmp_path, "one at a time") as there:
        monkeypatch.setattr(locks, "_machine", lambda: "another")
        monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
        with pytest.raises(ConfigError, match="another process trains there at the moment"):
            Lock(tmp_path, "one at a time")
        there._ended.set()  # the machine stands still
        there._thread.join()
        monkeypatch.setattr(locks, "WATCH_SECONDS", 1.2)
        began = time.monotonic()
        with Lock(tmp_path, "one at a time"):
            assert time.monotonic() - began >= 1.2
            there._ended.clear()
            there._beat()  # it goes on, and leaves the lock file as it is
            there.close()
            assert (tmp_path / LEASE).is_file()
    waiting, taken = capsys.readouterr().err.splitlines()[-2:]
    assert "waiting for a sign of process" in waiting and "for up to 1.2 s, since its end cannot be seen" in waiting
    assert "was taken over by process" in taken and not (tmp_path / LEASE).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"machine": 3'])
def test_a_damaged_lock_file_holds_nobody_up_for_longer(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.1)
    (tmp_path / LEASE).write_text(content)
    with Lock(tmp_path, "one at a time"):
        assert json.loads((tmp_path / LEASE).read_bytes())["pid"] == os.getpid()


def test_a_lock_file_that_cannot_be_written_any_more_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with Lock(tmp_path, "one at a time") as lock:
        (tmp_path / LEASE).unlink()
        (tmp_path / LEASE).mkdir()
        time.sleep(0.1)
        assert lock._thread.is_alive()
