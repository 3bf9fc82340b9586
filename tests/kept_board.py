"""A board that keeps what it is shown, for tests: `logger.boards = {"kept": {}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.training.boards.base import Board

KEPT: dict[Path, list[tuple[str, int, Any]]] = {}  # tag, step and value, by the run's folder


class Kept(Board):
    name = "kept"

    def __init__(self, run: Path, options: Any, *, config: Config, first_step: int) -> None:
        self.shown = [(tag, step, value) for tag, step, value in KEPT.get(run, []) if step < first_step]
        KEPT[run] = self.shown

    def text(self, tag: str, text: str, step: int) -> None:
        self.shown.append((tag, step, text))

    def image(self, tag: str, image: Any, step: int) -> None:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == "uint8"
        self.shown.append((tag, step, image.tobytes()))

    def histogram(self, tag: str, counts: Sequence[int], step: int, *, low: float, high: float) -> None:
        self.shown.append((tag, step, (list(counts), low, high)))

    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        self.shown.append(("hparams", 0, (dict(values), dict(metrics))))


def kept(run: Path) -> dict[str, dict[int, Any]]:
    """What the run showed but scalars, by tag and then by step."""
    return {tag: {at: value for name, at, value in KEPT[run] if name == tag} for tag, _, _ in KEPT[run]}
