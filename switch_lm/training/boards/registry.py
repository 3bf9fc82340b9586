"""The boards by name. A board's file is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from switch_lm.config.families import require_keys

if TYPE_CHECKING:
    from switch_lm.training.boards.base import Board

BOARDS: dict[str, type[Board] | str] = {  # a class, or where it is: "module:Class"
    "csv": "switch_lm.training.boards.csv:Csv",
    "tensorboard": "switch_lm.training.boards.tensorboard:TensorBoard",
    "wandb": "switch_lm.training.boards.wandb:Wandb",
}


def register(name: str, board: type[Board]) -> None:
    """Adds a board. ValueError if another class has its name; TypeError if its `Options` is not made of keys."""
    require_keys(board.Options)
    if (known := BOARDS.get(name)) is not None and _place(known) != _place(board):
        raise ValueError(f"{_place(board)}: a board named {name} exists already ({_place(known)}); choose another name")
    BOARDS[name] = board


def board_class(name: str) -> type[Board]:
    """The board of this name; KeyError if there is none."""
    board = BOARDS[name]
    if isinstance(board, str):
        module, _, own_name = board.partition(":")
        board = getattr(import_module(module), own_name)
    assert not isinstance(board, str)
    return board


def _place(board: type[Board] | str) -> str:
    return board if isinstance(board, str) else f"{board.__module__}:{board.__qualname__}"
