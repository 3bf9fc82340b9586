"""What a check reports: its verdict, what was measured, and what that means."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from switch_lm.routers.base import Promise


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
    promise: str = ""  # the field of `Promise` that a leak is judged by
    judgement: str = ""  # of a leak: whether it is expected, and whether evaluation is free of it


def judged(check: str, holds: bool, measured: str, figures: dict[str, Any], *, good: str, bad: str) -> Finding:
    """PASS with the meaning `good`, or FAIL with `bad`."""
    return Finding(check, Verdict.PASS if holds else Verdict.FAIL, measured, good if holds else bad, figures)


def leak(seen: bool, *, known: bool) -> Verdict:
    """`known`: whether this rule is known to do it."""
    return (Verdict.LEAKS if known else Verdict.FAIL) if seen else Verdict.PASS


def when(state: str, meaning: str) -> str:
    """A meaning that holds in a part of a run alone, which `state` names; empty: always."""
    return f"{state}: {meaning}" if state else meaning


EVALUATION = ", evaluation"  # how the names of checks end that training has, too
MEANS = {
    "sees_future": "its losses are not those of prediction",
    "depends_on_rows": "its losses depend on how a text is put into batches",
    "": "its losses are not what generation pays",
}


def with_judgements(findings: Sequence[Finding], *, evaluation: Promise) -> list[Finding]:
    """Each leak is judged by what its router promises of evaluation, too, and by the checks of evaluation."""
    broken = [one.check for one in findings if one.check.endswith(EVALUATION) and one.verdict != Verdict.PASS]
    harm = f"not harmless: see {' and '.join(broken)}" if broken else "harmless in evaluation"

    def judgement(one: Finding) -> str:
        if one.verdict == Verdict.FAIL and one.promise:
            return f"its router promises otherwise ({one.promise}): {MEANS[one.promise]}"
        if one.verdict != Verdict.LEAKS:
            return ""
        if one.check.endswith(EVALUATION) or getattr(evaluation, one.promise):
            return f"expected of this rule, in evaluation too: {MEANS[one.promise]}"
        return f"expected of this rule; {harm}"

    return [replace(one, judgement=judgement(one)) for one in findings]
