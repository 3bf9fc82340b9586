"""All checks of one model, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable

from switch_lm.check import choices, leaks, routers, scores
from switch_lm.check.finding import Finding
from switch_lm.check.subject import Subject

Say = Callable[[str], None]  # what is measured at the moment


PARTS: dict[str, Callable[[Subject], list[Finding]]] = {
    "causality, by intervention": leaks.check,
    "scores: batches, cache, character by character": scores.check,
    "choices and capacity": choices.check,
    "routers, over the validation split": routers.check,
}
OF_SWITCH_LAYERS = (choices.check, routers.check)


def certify(subject: Subject, *, say: Say = lambda _: None) -> list[Finding]:
    """A dense model has no choices and routers to check."""
    found: list[Finding] = []
    for name, check in PARTS.items():
        if subject.model.config.num_switch_layers or check not in OF_SWITCH_LAYERS:
            say(name)
            found += check(subject)
    return found
