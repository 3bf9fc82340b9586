"""All checks of one model, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable

from switch_lm.certificate import choices, leaks, outputs, queues, routers, scores
from switch_lm.certificate.finding import Finding
from switch_lm.certificate.layers import layer_runs
from switch_lm.probe.subject import Subject

Say = Callable[[str], None]  # what is being measured


def _layers(subject: Subject) -> list[Finding]:
    runs = list(layer_runs(subject))
    return [
        queues.selected(runs),
        queues.places(runs),
        choices.conserved(runs),
        choices.capacity(runs),
        outputs.output(runs),
        outputs.gradients(subject),
        outputs.gates(runs),
        outputs.float32_router(subject),
    ]


PARTS: dict[str, Callable[[Subject], list[Finding]]] = {
    "causality, by intervention": leaks.check,
    "scores: batches, cache, character by character": scores.check,
    "layers, each alone": _layers,
    "routers, over the validation split": routers.check,
}
OF_SWITCH_LAYERS = (_layers, routers.check)


def certify(subject: Subject, *, say: Say = lambda _: None) -> list[Finding]:
    """A dense model has no choices and routers to check."""
    found: list[Finding] = []
    for name, check in PARTS.items():
        if subject.model.config.num_switch_layers or check not in OF_SWITCH_LAYERS:
            say(name)
            found += check(subject)
    return found
