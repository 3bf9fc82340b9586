"""How thorough a benchmark is, and which of its cases are wanted."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

REPETITIONS = 15
QUICK_REPETITIONS = 9


@dataclass(frozen=True)
class Options:
    """`only`: parts of a case's name, of which one must occur in it; without any, all cases are wanted."""

    repetitions: int = REPETITIONS
    quick: bool = False
    only: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    control: str | None = None
    outputs: Path = field(default=Path("outputs", "benchmarks"))

    def wants(self, case: str) -> bool:
        return not self.only or any(part in case for part in self.only)


def say(text: str) -> None:
    """Progress; the result alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)
