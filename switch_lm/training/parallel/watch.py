"""The other processes of a run, seen from its first one: which of them ended, and which does not answer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE, READY = "here", "ready"  # what each writes into the store that they share
ANSWER = "answer"  # its file in their folder
ASK = b"?\n"
LOST = 75  # the exit code of a worker whose connection to the others broke: another one is the cause
LOOK_SECONDS = 0.05
CAUSE_SECONDS = 3.0  # how long the cause of a broken connection may take to be known
ANSWER_SECONDS = 5.0
END_SECONDS = 5.0  # until a worker that should end by itself is killed


class LostProcessError(Exception):
    """A process of the run failed, was killed or hangs; the message says which."""


class Workers:
    """Processes 1 to `size` - 1. They end with its block: by themselves, as their input ends, or else killed."""

    def __init__(self, size: int, task: str, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        # What this process can import, such as a plugin beside a script, the others can.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for rank in range(1, size):
            with self._output(rank).open("wb") as output:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-m", "switch_lm.training.parallel.worker", str(rank)],
                    stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment,
                )  # fmt: skip
            self._tell(rank, f"{task}\n".encode())

    def _output(self, rank: int) -> Path:
        return self.folder / f"output_{rank}"

    def _tell(self, rank: int, line: bytes) -> None:
        stream = self.processes[rank].stdin
        assert stream is not None
        with suppress(OSError):  # it has ended, which `check` finds
            stream.write(line)
            stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """After an error they end at once; otherwise they have done their part, and end by themselves."""
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
                with suppress(OSError):
                    process.stdin.close()

    def wait_for(self, store: Any, what: str) -> None:
        """Until each has written `what` into the store, however long it takes. LostProcessError if one ends."""
        while not store.check([f"{what}/{rank}" for rank in self.processes]):
            self.check()
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """LostProcessError if one has ended before its time, with its own reason, or none, if it was killed."""
        for rank, code in self._lost().items():
            raise LostProcessError(self._why(rank, code))

    def _lost(self) -> dict[int, int]:
        """The exit codes of those that ended before their time, whatever the others did."""
        codes = {rank: process.poll() for rank, process in self.processes.items()}
        return {rank: code for rank, code in codes.items() if code is not None and code not in (0, LOST)}

    def look_for_the_cause(self, error: Exception, *, seconds: float) -> None:
        """After an exchange that failed: LostProcessError if a process is the cause, which may end a moment later."""
        self._until(lambda: bool(self._lost()), CAUSE_SECONDS)
        self.check()
        waiting = {rank: process for rank, process in self.processes.items() if process.poll() is None}
        for rank in waiting:
            self._tell(rank, ASK)
        self._until(lambda: all((self.folder / f"{ANSWER}_{rank}").exists() for rank in waiting), ANSWER_SECONDS)
        silent = [rank for rank in waiting if not (self.folder / f"{ANSWER}_{rank}").exists()]
        if silent:
            named = " and ".join(f"process {rank} (PID {self.processes[rank].pid})" for rank in silent)
            raise LostProcessError(f"{named} did not answer for {seconds:g} s (trainer.peer_timeout)")
        if len(waiting) < len(self.processes):
            raise LostProcessError(f"the connection between the processes broke ({error})")

    def _until(self, happened: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _why(self, rank: int, code: int) -> str:
        """From the last line that it printed."""
        if code < 0:
            return f"process {rank} (PID {self.processes[rank].pid}) was ended by {signal.Signals(-code).name}"
        said = self._output(rank).read_text(encoding="utf-8", errors="replace").strip()
        return f"process {rank} failed: {said.splitlines()[-1] if said else f'exit code {code}'}"
