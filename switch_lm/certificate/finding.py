"""What a check reports: its verdict, what was measured, and what that means."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """PASS: as promised. LEAKS: as this rule is known to do. FAIL: it contradicts its rule."""

    PASS = "PASS"
    LEAKS = "LEAKS"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the certificate."""

    check: str
    verdict: Verdict
    measured: str
    meaning: str
    figures: dict[str, Any] = field(default_factory=dict)  # what `measured` shows, as plain numbers


def judged(check: str, holds: bool, measured: str, figures: dict[str, Any], *, good: str, bad: str) -> Finding:
    """PASS with the meaning `good`, or FAIL with `bad`."""
    return Finding(check, Verdict.PASS if holds else Verdict.FAIL, measured, good if holds else bad, figures)


def leak(seen: bool, *, known: bool) -> Verdict:
    """`known`: whether this rule is known to do it."""
    return (Verdict.LEAKS if known else Verdict.FAIL) if seen else Verdict.PASS


def when(state: str, meaning: str) -> str:
    """A meaning that holds in a part of a run alone, which `state` names; empty: always."""
    return f"{state}: {meaning}" if state else meaning
