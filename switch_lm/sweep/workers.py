"""The processes of a launcher, such as joblib's: they get the signals of a sweep, and the one that dies is known."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from switch_lm.commandline.signals import Signalled, caught, end, repeats

LOOK_SECONDS = 0.5  # between two looks at which workers there are


@contextmanager
def passed_on() -> Iterator[None]:
    """In its block a signal is sent to the workers, each of which saves its job; the block's end then raises it.

    A worker that is still importing saves nothing and dies, and joblib then ends the others.

    A second signal, or one without a worker, is raised at once.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if received and repeats(number):
            return
        workers = multiprocessing.active_children()
        if received or not workers:
            end(number, frame)
        received.append(number)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number)

    try:
        with caught(pass_on):
            yield
    finally:
        if received:  # whatever a launcher makes of workers that end
            raise Signalled(received[0])


@contextmanager
def deaths() -> Iterator[dict[int, float]]:
    """In its block, fills in when each worker ended, by process id: when one dies, joblib kills the others unnamed."""
    ended, over = dict[int, float](), threading.Event()

    def watch() -> None:
        workers: dict[Any, BaseProcess] = {}
        while not over.is_set():
            workers |= {one.sentinel: one for one in multiprocessing.active_children() if one.pid not in ended}
            for sentinel in connection.wait(list(workers), LOOK_SECONDS):
                worker, when = workers.pop(sentinel), time.monotonic()
                worker.join(1.0)
                if worker.exitcode != 0:  # with 0 joblib ends idle workers
                    ended[worker.pid or 0] = when

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield ended
    finally:
        over.set()
