"""Catches the signals that ask a run to end, so that it can end after a step."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from switch_lm.storage.run_folder import Stopped

# kill and a cluster's scheduler, Ctrl-C, and what SLURM can send before its time limit (--signal=USR1@60).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
IN_TIME = 0  # the exit code of trainer.max_time: the run did what was asked


class StopSignals:
    """In its block the first signal is kept as `received`, a second raises `Stopped` at once. Blocks may be nested.

    So does the first one while there is `nothing_to_save`.
    """

    nothing_to_save = True  # until training begins

    def __init__(self, run: Path) -> None:
        self.run = run
        self.received: signal.Signals | None = None
        self._depth, self._before = 0, dict[signal.Signals, Any]()

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def stopped(self, saved: str) -> Stopped:
        """What to raise. `saved`: what of the run is."""
        what = self.received
        by, code = ("at trainer.max_time", IN_TIME) if what is None else (f"by {what.name}", 128 + what)
        return Stopped(f"Stopped {by}: {saved} in {self.run}", run=self.run.name, code=code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number)
        if again:
            raise self.stopped("what its last checkpoint holds is saved")
        if self.nothing_to_save:
            raise self.stopped("no step was done since the start, so nothing is lost")
