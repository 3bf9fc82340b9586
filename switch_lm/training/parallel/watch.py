"""The other processes of a run, seen from its first one: which of them ended, and which does not answer."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE, READY = "here", "ready"  # what each writes into the store that they share
TASK = "task.json"  # in their folder, as all that follows: what there is to do
LOST = 75  # the exit code of a worker whose connection to the others broke: another one is the cause
LOOK_SECONDS = 0.05
BEAT_SECONDS = 1.0
CAUSE_SECONDS = 3.0  # how long the cause of a broken connection may take to be known
ANSWER_SECONDS = 5.0
END_SECONDS = 5.0  # until a worker that should end by itself is killed


def of_connection(message: str) -> bool:
    """Whether an error of torch is one of its connections, which have no class of their own."""
    return any(word in message for word in ("gloo", "pair closure", "recvvector"))


class LostProcessError(Exception):
    """A process of the run failed, was killed or hangs; the message says which."""


def output_of(folder: Path, rank: int) -> Path:
    """What a worker printed; beside it, where nobody waits for its exit code, this code."""
    return folder / f"output_{rank}"


class Pulse(threading.Thread):
    """Touches a file of this process every second, and counts for how many seconds those of `others` are untouched.

    By its own beats, not by the clock: where all processes were stopped for a while, none was silent. Whatever the
    process does meanwhile, such as drawing, it beats.
    """

    def __init__(self, folder: Path, rank: int, others: Iterable[int], *, after_beat: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.folder, self.rank, self.after_beat = folder, rank, after_beat
        self.silent, self.seen = dict.fromkeys(others, 0.0), dict[int, int]()
        self.ended = threading.Event()

    def file(self, rank: int) -> Path:
        return self.folder / f"pulse_{rank}"

    def of(self, rank: int) -> int:
        """Changes with each beat of another process."""
        with suppress(OSError):
            return self.file(rank).stat().st_mtime_ns
        return 0

    def named(self, rank: int) -> str:
        with suppress(OSError):
            return f"process {rank} (PID {self.file(rank).read_text()})"
        return f"process {rank}"

    def run(self) -> None:
        with suppress(OSError):  # the folder is gone: the run is over
            self.file(self.rank).write_text(str(os.getpid()))
            while not self.ended.wait(BEAT_SECONDS):
                os.utime(self.file(self.rank))
                for rank in self.silent:
                    last, self.seen[rank] = self.seen.get(rank, 0), self.of(rank)
                    self.silent[rank] = self.silent[rank] + BEAT_SECONDS if self.seen[rank] == last else 0.0
                self.after_beat()


class Workers:
    """Processes 1 to `size` - 1, which this one starts unless they were `started` already.

    They end with its block: by themselves, as their input ends, or else killed. `seconds`: how long one may be silent.
    """

    def __init__(self, size: int, folder: Path, *, started: bool, seconds: float) -> None:
        self.ranks, self.folder, self.seconds = range(1, size), folder, seconds
        self.pulse = Pulse(folder, 0, self.ranks, after_beat=lambda: None)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        # What this process can import, such as a plugin beside a script, the others can.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for rank in () if started else self.ranks:
            with output_of(folder, rank).open("wb") as output:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-m", "switch_lm.training.parallel.worker", str(rank), str(folder)],
                    stdin=subprocess.PIPE, stdout=output, env=environment,
                )  # fmt: skip

    def __enter__(self) -> Self:
        self.pulse.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """After an error they end at once; otherwise they have done their part, and end by themselves."""
        self.pulse.ended.set()
        if kind is not None:
            self._close()
        deadline = time.monotonic() + (END_SECONDS if kind else 10 * END_SECONDS)
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._close()

    def _close(self) -> None:
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()

    def wait_for(self, store: Any, what: str) -> None:
        """Until each has written `what` into the store. LostProcessError if one ends or hangs."""
        while not store.check([f"{what}/{rank}" for rank in self.ranks]):
            self.check()
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """LostProcessError if one has ended before its time, with its own reason if it has one, or hangs."""
        for rank, code in self._codes().items():
            if code not in (None, 0, LOST):
                raise LostProcessError(self._why(rank, code))
        silent = [rank for rank, seconds in self.pulse.silent.items() if seconds >= self.seconds]
        self._name(silent, f"for {self.seconds:g} s (trainer.peer_timeout)")

    def _codes(self) -> dict[int, int | None]:
        """The exit code of each that has ended; None: it runs, or was killed where another program started it."""
        codes: dict[int, int | None] = {rank: process.poll() for rank, process in self.processes.items()}
        for rank in self.ranks if not codes else ():
            written = output_of(self.folder, rank).with_suffix(".code")
            codes[rank] = int(written.read_text()) if written.exists() else None
        return codes

    def look_for_the_cause(self, error: Exception) -> None:
        """After an exchange that failed: LostProcessError if a process is the cause, which may end a moment later."""
        self._until(lambda: any(code not in (None, 0, LOST) for code in self._codes().values()), CAUSE_SECONDS)
        self.check()
        before = {rank: self.pulse.of(rank) for rank, code in self._codes().items() if code is None}
        self._until(lambda: all(self.pulse.of(rank) != beat for rank, beat in before.items()), ANSWER_SECONDS)
        silent = [rank for rank, beat in before.items() if self.pulse.of(rank) == beat]
        self._name(silent, f"for {ANSWER_SECONDS:g} s after an exchange that failed")
        if len(before) < len(self.ranks) or of_connection(str(error)):
            words = " ".join(str(error).split())
            raise LostProcessError(f"the connection between the processes broke, or one was too slow ({words})")

    def _name(self, silent: list[int], how_long: str) -> None:
        if silent:
            named = " and ".join(map(self.pulse.named, silent))
            ended = "" if self.processes else ", or was killed"
            raise LostProcessError(f"{named} did not answer {how_long}{ended}")

    def _until(self, happened: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _why(self, rank: int, code: int) -> str:
        """From the last line that it printed."""
        if code < 0:
            return f"{self.pulse.named(rank)} was ended by {signal.Signals(-code).name}"
        said = output_of(self.folder, rank).read_text(encoding="utf-8", errors="replace").strip()
        return f"process {rank} failed: {said.splitlines()[-1] if said else f'exit code {code}'}"
