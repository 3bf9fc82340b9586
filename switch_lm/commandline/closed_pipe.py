"""A console that closes early, as with `| head`, ends nothing: what is printed afterwards goes nowhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Unbroken:
    """A stream that continues into nowhere once its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # so that what is still buffered can be flushed
            os.close(nowhere)


@contextmanager
def survive_closed_pipe() -> Iterator[None]:
    """In its block, or in the function it decorates, a closed standard output or error raises nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Unbroken(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
