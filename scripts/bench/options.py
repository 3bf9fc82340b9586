"""How thorough a benchmark is, and which of its cases are wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPETITIONS = 15
QUICK_REPETITIONS = 9


@dataclass(frozen=True)
class Options:
    """`only`: texts, one of which must occur in the name of a case; if empty, all cases are wanted."""

    repetitions: int = REPETITIONS  # of the loss benchmark: seeds
    quick: bool = False
    only: Sequence[str] = ()
    experiments: Sequence[str] = ()
    overrides: Sequence[str] = ()
    control: str | None = None
    share: bool = False
    outputs: Path = Path("outputs", "benchmarks")

    def wants(self, case: str) -> bool:
        return not self.only or any(part in case for part in self.only)


def say(text: str) -> None:
    """Progress goes to stderr; stdout holds only the result."""
    print(text, file=sys.stderr, flush=True)
