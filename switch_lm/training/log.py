"""The one place that writes what a run reports: to metrics.jsonl first, then to every board."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from switch_lm.config.schema import Config
from switch_lm.storage.files import remedy
from switch_lm.storage.metrics import MetricsFile, Row
from switch_lm.training.boards.base import Board
from switch_lm.training.boards.registry import board_class

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BoardError(Exception):
    """A board failed; the message names it and says how to continue."""


class Log:
    """Has the calls of a `Board`. Without a file and boards, as before a run, it writes nothing.

    BoardError, which names the board, if one fails; OSError with the file's name from the disk.
    """

    def __init__(self, metrics: MetricsFile | None = None, boards: Sequence[Board] = ()) -> None:
        self._metrics, self._boards = metrics, boards

    @classmethod
    def open(cls, run: Path, config: Config, *, first_step: int, kept: int = 0) -> Self:
        """Continues the run's file and boards, and forgets what was written from `first_step` on.

        The file keeps its first `kept` rows even so. A board can only forget whole steps: it forgets none if no row was
        removed; otherwise it forgets them and gets the kept rows' scalars again.
        """
        metrics, boards = MetricsFile(run, first_step=first_step, kept=kept), list[Board]()
        log, late = cls(metrics, boards), metrics.late if metrics.removed else []
        if metrics.late and not late:
            first_step = metrics.late[-1]["step"] + 1
        with ExitStack() as undo:
            undo.push(log.__exit__)
            for name, given in config.logger.boards.items():
                board = board_class(name)
                with _naming(name):
                    boards.append(board(run, board.Options(**given), config=config, first_step=first_step))
            for row in late:
                log._show_row(row)
            undo.pop_all()
        return log

    @property
    def num_rows(self) -> int:
        """Of the file."""
        return 0 if self._metrics is None else self._metrics.num_rows

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._metrics is not None:
            self._metrics.write(values, step)
        self._show(lambda board: board.scalars(values, step))

    def text(self, tag: str, text: str, step: int) -> None:
        self._show(lambda board: board.text(tag, text, step))

    def image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        self._show(lambda board: board.image(tag, image, step))

    def histogram(self, tag: str, counts: Sequence[int], step: int, *, low: float, high: float) -> None:
        self._show(lambda board: board.histogram(tag, counts, step, low=low, high=high))

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        self._show(lambda board: board.hparams(values, metrics))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the file and every board. An error that ends the run is not replaced by one of closing."""
        failures = []
        for board in self._boards:
            try:
                with _naming(board.name):
                    board.close()
            except (BoardError, OSError) as failure:
                failures.append(failure)
        if self._metrics is not None:
            self._metrics.close()
        if failures and error is None:
            raise failures[0]

    def _show_row(self, row: Row) -> None:
        values = {
            tag: math.nan if value is None else value for tag, value in row.items() if tag not in ("step", "time")
        }
        self._show(lambda board: board.scalars(values, row["step"]))

    def _show(self, call: Callable[[Board], None]) -> None:
        for board in self._boards:
            with _naming(board.name):
                call(board)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of another package, or of a plugin
        if isinstance(error, OSError) and (error.filename or remedy(error)):  # the disk's, not the board's
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        fix = "to continue without it, leave it out of logger=[...]"
        raise BoardError(f"the board {name} failed ({reason}); {fix}") from error
