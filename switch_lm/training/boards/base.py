"""What a board is: the six calls by which a run shows its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from switch_lm.training.boards.registry import register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from switch_lm.config.schema import Config


@dataclass
class NoOptions:
    """Of a board that has none."""


class Board:
    """Shows a run's figures. Every method does nothing: a board writes those for what it can show.

    A subclass that states its `name` is a board: `logger=NAME` chooses it, with `configs/logger/NAME.yaml`, and
    `logger.boards.NAME.KEY` is the field KEY of its `Options`, a dataclass whose fields are made by `config.keys.key`.
    Its module is imported to check these, so it imports what is slow or may be missing in `__init__`.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            register(cls.name, cls)

    @classmethod
    def require(cls) -> None:
        """ConfigError with the fix if the board cannot be used here; asked before a run writes anything."""

    def __init__(self, run: Path, options: Any, *, config: Config, first_step: int) -> None:
        """`run`: the run's folder, where a board keeps its files. `options`: an `Options`.

        `first_step`: the first step to come, 0 for a new run. What an earlier start wrote from there on is written
        again: a board forgets it.
        """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, after `step` steps. A number may be NaN or infinite."""

    def text(self, tag: str, text: str, step: int) -> None:
        """A text in Markdown."""

    def image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        """A picture (H, W, 3)."""

    def histogram(self, tag: str, counts: Sequence[int], step: int, *, low: float, high: float) -> None:
        """How many numbers lie in each of some bins of equal width, which reach from `low` to `high`."""

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        """The run's row in a table of runs: what is configured, and what is measured, by column.

        Called when the run starts, and when a later leg of it does. A measured value is the last one of the scalar with
        this tag.
        """

    def close(self) -> None:
        """Called once, also when a run fails."""
