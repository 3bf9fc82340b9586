"""Catches the signals that ask a run to end, so that it can end after a step."""

import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from switch_lm.commandline.signals import caught, repeats
from switch_lm.storage.run_folder import Stopped

IN_TIME = 0  # the exit code of trainer.max_time: the run did what was asked


class StopSignals:
    """In its block the first signal is kept as `received`, a second raises `Stopped` at once. Blocks may be nested.

    The first one does, too, while `nothing_to_save`. `patient`: a second one changes nothing, as in a launcher's
    worker, which may get the same one from the terminal and from the process that started it.
    """

    nothing_to_save = True  # until training begins

    def __init__(self, run: Path, *, patient: bool = False) -> None:
        self.run, self.patient = run, patient
        self.received: signal.Signals | None = None
        self._depth = 0
        self._caught: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1:
            self._caught = caught(self._on_signal)
            self._caught.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._caught.__exit__(None, None, None)

    def stopped(self, saved: str) -> Stopped:
        """What to raise. `saved`: what of the run is."""
        what = self.received
        by, code = ("at trainer.max_time", IN_TIME) if what is None else (f"by {what.name}", 128 + what)
        return Stopped(f"Stopped {by}: {saved} in {self.run}", run=self.run.name, code=code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        if again and (self.patient or repeats(number)):
            return
        self.received = signal.Signals(number)
        if again:
            raise self.stopped("what its last checkpoint holds is saved")
        if self.nothing_to_save:
            raise self.stopped("no step was done since the start, so nothing is lost")
