"""Who has a folder: flock where there is one; otherwise, and between machines, a file that its owner keeps changing."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from switch_lm.config.keys import ConfigError
from switch_lm.storage import locks
from switch_lm.storage.locks import LEASE, Lock
from switch_lm.storage.run_folder import RunFolder

HOLDER = "import sys, pathlib; from switch_lm.storage.locks import Lock; lock = Lock(pathlib.Path(sys.argv[1]), '')"


def granted(file: int, how: int) -> None:
    """As on a share whose locks do not reach other machines."""


def refused(file: int, how: int) -> None:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("flock", [fcntl.flock, refused, granted])
def test_a_folder_is_its_owners_until_kill_9_and_then_free_at_once(
    flock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)
    words = [sys.executable, "-c", f"{HOLDER}; print(flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(ConfigError, match=rf"is working there \(process {holder.pid} on"):
            Lock(tmp_path, "one at a time")
        assert RunFolder(tmp_path).nothing_to_lose  # a lock is no content
        monkeypatch.setattr(locks, "LOCK_SECONDS", 5.0)
        holder.kill()  # and nobody has asked for its exit code yet
        with Lock(tmp_path, "one at a time"):
            assert "waiting" not in capsys.readouterr().err  # which is printed after a second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flock", [refused, granted])
def test_another_machines_folder_is_watched_and_free_once_its_lock_file_stands_still(
    flock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    there = Lock(tmp_path, "one at a time")
    monkeypatch.setattr(locks, "_machine", lambda: "another")
    with pytest.raises(ConfigError, match="another process is working there"):
        Lock(tmp_path, "one at a time")
    there._ended.set()  # the machine stands still
    there._thread.join()
    monkeypatch.setattr(locks, "WATCH_SECONDS", 1.2)
    with Lock(tmp_path, "one at a time"):
        there._ended.clear()
        there._beat()  # it goes on, and leaves the lock file as it is
        there.close()
        assert (tmp_path / LEASE).is_file()
    waiting, taken = capsys.readouterr().err.splitlines()[-2:]
    assert "may still be working there; waiting 1.2 s at most: its end cannot be seen" in waiting
    assert "was taken over by process" in taken and not (tmp_path / LEASE).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"machine": 3'])
def test_a_lock_file_that_is_damaged_or_cannot_be_written_any_more_stops_no_run(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    (tmp_path / LEASE).write_text(content)
    with Lock(tmp_path, "one at a time") as lock:
        (tmp_path / LEASE).unlink()
        time.sleep(0.1)
        assert lock._thread.is_alive()
