"""Printing never fails: a console that closes early, a full disk or a poor encoding loses text, and no result."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO


class _Unbroken:
    """A stream that discards its text once it cannot be written, and shows ? for what its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:  # nothing of the text was written
            self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))

    def _try(self, act: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            act()
        except BlockingIOError:
            pass  # its reader is slow, and what called us made it so that it does not wait: only this piece is lost
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lost = True
            if not isinstance(error, BrokenPipeError) and self is not sys.stderr:
                reason = error.strerror if isinstance(error, OSError) else error
                print(f"warning: the output could not be printed: {reason}", file=sys.stderr)
            self._drop_what_is_buffered()

    def _drop_what_is_buffered(self) -> None:
        """Python writes it at its end, and would fail again."""
        try:
            file, nowhere = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            kept = os.dup(file)
            os.dup2(nowhere, file)
            self._stream.flush()
            os.dup2(kept, file)
            os.close(nowhere)
            os.close(kept)
        except (OSError, ValueError):
            pass  # a stream without a file has none


@contextmanager
def survive_closed_pipe() -> Iterator[None]:
    """In its block, or in the function it decorates, nothing that is printed raises. Blocks may be nested."""
    before = sys.stdout, sys.stderr
    with ExitStack() as undo:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if stream is None:  # the process was started without one
                stream = undo.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            setattr(sys, name, _Unbroken(stream))
        try:
            yield
        finally:
            streams, (sys.stdout, sys.stderr) = (sys.stdout, sys.stderr), before
            for stream in filter(None, streams):
                stream.flush()
