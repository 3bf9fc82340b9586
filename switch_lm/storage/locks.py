"""Who may work in a folder: one process at a time, on one machine or on several that share the folder."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from switch_lm.config.keys import ConfigError
from switch_lm.storage.files import PART, warn_once

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LEASE = ".lock"  # names the process that works in the folder, with a number that it keeps raising
LOCK_SECONDS = 10.0  # to wait for it: a killed run may take some seconds to free its memory and end
WATCH_SECONDS, BEAT_SECONDS = 15.0, 3.0  # how long a lease is watched for a change, and how often it changes


class TakenError(ConfigError):
    """Another process works in the folder, or did in the meantime."""


class Lock:
    """Keeps other processes from working in a folder, in its block or until the process ends, however it ends.

    `flock` decides where there is one. A lease, a file that the owner keeps changing, decides where there is none, and
    between machines, whose locks may not meet. TakenError, with the `rule` that this holds, if another process has it.
    """

    def __init__(self, folder: Path, rule: str) -> None:
        self._folder, self._file = folder, (folder / LEASE).absolute()
        self._owner = _this_process()
        self._descriptor: int | None = None
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._beat, name="lock", daemon=True)
        try:
            self._take(rule)
            self._thread.start()
        except BaseException:  # Ctrl-C while it waits, too
            self.close()
            raise

    def _take(self, rule: str) -> None:
        began = since = time.monotonic()
        seen: bytes | None = None
        held = announced = False
        while True:
            granted, lease, now = self._flock(), self._read(), time.monotonic()
            if granted is not False and lease is None and self._create():
                return
            if lease != seen:
                held = held or None not in (lease, seen)
                seen, since = lease, now
            works = granted is False or (lease is not None and _works(lease, locked=granted is True))
            held = held or works is True
            if lease is not None and (works is False or (works is None and now - since >= WATCH_SECONDS)):
                self._remove(lease)
                continue
            if held and now - began > LOCK_SECONDS:
                raise TakenError(
                    f"{self._folder}: another process is working there ({_named(lease)}); {rule}; wait until it "
                    "ends, or choose another name"
                )
            if not (held or announced) and now - since > 1:
                announced, end = True, f"waiting {WATCH_SECONDS:g} s at most: its end cannot be seen from here"
                print(f"{self._folder}: {_named(lease)} may still be working there; {end}", file=sys.stderr)
            time.sleep(0.2)

    def _flock(self) -> bool | None:
        """Whether this machine gives us the folder; None, with a warning, if it locks no folders there."""
        try:
            if fcntl is None:
                raise OSError(None, "this system has no flock")
            if self._descriptor is None:
                self._descriptor = os.open(self._folder, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            instead = f"instead, each run keeps updating the file {LEASE} in it to keep others out"
            warn_once("flock", f"{self._folder}: the folder cannot be locked ({error.strerror}); {instead}")
            return None
        return True

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None

    def _create(self) -> bool:
        """Makes the lease; False if somebody else was quicker."""
        try:
            with self._file.open("xb") as file:
                file.write(json.dumps(self._owner).encode())
        except FileExistsError:
            return False
        except BaseException:  # a full disk, Ctrl-C
            self._file.unlink(missing_ok=True)
            raise
        return True

    def _remove(self, lease: bytes) -> None:
        """Removes a lease that nobody keeps, but not one that somebody has made in its place in the meantime."""
        aside = self._file.with_name(f"{LEASE}.{self._owner['token']}{PART}")
        with suppress(FileNotFoundError):  # somebody else was quicker
            self._file.rename(aside)
            if aside.read_bytes() == lease:
                aside.unlink()
            else:
                aside.rename(self._file)

    def _beat(self) -> None:
        """Raises the number in the lease, in its place, which needs no room on the disk. It never ends a run."""
        while not self._ended.wait(BEAT_SECONDS):
            self._owner["count"] += 1
            with suppress(OSError), self._file.open("r+b") as file:
                if not self._is_ours(lease := file.read()):
                    lost = f"{self._folder} was taken over by {_named(lease)}, since this one stood still for too long"
                    print(f"warning: {lost}; stop one of the two", file=sys.stderr)
                    return
                file.seek(0)
                file.write(json.dumps(self._owner).encode())

    def _is_ours(self, lease: bytes | None) -> bool:
        return lease is not None and self._owner["token"].encode() in lease

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        with suppress(OSError):  # of a folder that cannot be written any more: its process's end tells the next one
            if self._is_ours(self._read()):
                self._file.unlink()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def in_use(folder: Path) -> bool:
    """Whether a process works in the folder, as far as can be told at once and without writing there.

    A lease that nothing else can be told about counts for some time after it was last changed.
    """
    locked = False
    with suppress(OSError):  # it is gone, or cannot be locked
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                locked = True
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    try:
        lease, changed = (folder / LEASE).read_bytes(), (folder / LEASE).stat().st_mtime
    except OSError:
        return False
    works = _works(lease, locked=locked)
    return abs(time.time() - changed) < 4 * WATCH_SECONDS if works is None else works


def _this_process() -> dict[str, Any]:
    """What tells this process from all others: numbers of processes, and in containers names of machines, repeat."""
    names = {"machine": _machine(), "processes": _processes(), "host": platform.node()}
    return names | {"pid": os.getpid(), "started": _started(os.getpid()), "token": secrets.token_hex(4), "count": 0}


def _works(lease: bytes, *, locked: bool) -> bool | None:
    """Whether the process that a lease names still works; None: nothing tells. `locked`: `flock` gave us the folder."""
    try:
        owner = json.loads(lease)
        if owner["machine"] != _machine():
            return None
        visible = owner["processes"] == _processes() and owner["pid"] != os.getpid()
        started = _started(owner["pid"]) if visible else None
        if started and owner["started"]:
            return bool(started == owner["started"])
        return False if started == "" or locked else None
    except (ValueError, TypeError, LookupError, OverflowError):  # it is being written, or was when the power failed
        return None


def _named(lease: bytes | None) -> str:
    try:
        return "process {pid} on {host}".format_map(json.loads(lease or b""))
    except (ValueError, TypeError, LookupError):
        return "an unknown process"


def _machine() -> str:
    """A machine, from its start to its end."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return platform.node()


def _processes() -> str:
    """Which processes are seen from here: a container sees its own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started; "": it has ended; None: that cannot be known here."""
    try:
        if os.name == "posix":  # elsewhere this would end it
            os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass  # it is another user's
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]  # it has ended, and its parent has not asked for its exit code
