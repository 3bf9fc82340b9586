"""Restores the process-wide settings that a run or a command changes, however it ends."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored(*loggers: str) -> Iterator[None]:
    """Restores torch's threads and random numbers, the warnings filters, and the level and handlers of `loggers`.

    A GPU that is not in use at the start of the block has no random state to restore.
    """
    before = [(log, log.level, list(log.handlers)) for log in map(logging.getLogger, loggers)]
    threads = torch.get_num_threads()
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus), warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for log, level, handlers in before:
                log.setLevel(level)
                log.handlers = handlers
