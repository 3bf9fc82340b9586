"""The signals that ask a command to end, and how it ends: what is open is closed, no traceback, exit code 128 + n."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; kill and a cluster's scheduler; a terminal that is closed; what SLURM can send before its time limit
# (--signal=USR1@60); a limit of CPU time. Windows lacks some.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], Any]


class Signalled(SystemExit):
    """A signal came: raised where the process was at that moment."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.code: int = 128 + number
        self.name = signal.Signals(number).name


def repeats(number: int) -> bool:
    """Whether the system sends this signal again and again: SIGXCPU comes once for each second over the limit."""
    return number == getattr(signal, "SIGXCPU", None)


@contextmanager
def caught(handler: Handler) -> Iterator[None]:
    """In its block the signals call `handler`. What is ignored stays so, as SIGHUP is under nohup."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: it belongs to a program that embeds us
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end(number: int, frame: FrameType | None) -> None:
    """A handler that ends what runs."""
    raise KeyboardInterrupt if number == signal.SIGINT else Signalled(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In its block, or in the function it decorates, a signal ends the process, with a word on stderr."""
    try:
        with caught(end):
            yield
    except Signalled as stop:
        print(f"Stopped by {stop.name}.", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        raise Signalled(signal.SIGINT) from None
