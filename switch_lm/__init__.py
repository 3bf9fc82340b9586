"""switch_lm: a small Switch Transformer language model, trained and measured end to end."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from switch_lm.api import (
        Board,
        Expected,
        Promise,
        Router,
        Routing,
        Run,
        SwitchFeedForward,
        SwitchLM,
        expert_capacity,
        fit,
        load,
        load_balancing_loss,
    )

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python looks for the command that it is to run. Until that catches Ctrl-C itself, it ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
__all__ = [
    "Board",
    "Expected",
    "Promise",
    "Router",
    "Routing",
    "Run",
    "SwitchFeedForward",
    "SwitchLM",
    "expert_capacity",
    "fit",
    "load",
    "load_balancing_loss",
]


def __getattr__(name: str) -> object:
    """Imports a public name at its first use: torch takes seconds to import, and not every command needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "switch_lm.training.boards.base" if name == "Board" else "switch_lm.api"  # a board needs no torch
    return getattr(import_module(place), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
