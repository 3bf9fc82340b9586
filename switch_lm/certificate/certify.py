"""All checks of one model, in the order in which they are shown."""

from collections.abc import Callable

from switch_lm.certificate import choices, leaks, outputs, promises, routers, scores
from switch_lm.certificate.finding import Finding, Verdict, with_judgements
from switch_lm.certificate.layers import cases_of
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.subject import Subject


def _layers(subject: Subject) -> list[Finding]:
    cases, judged = cases_of(subject), routers.has_oracle(subject)
    return [
        *([choices.selected(cases), choices.slots(cases)] if judged else [_no_oracle(subject)]),
        choices.conserved(cases),
        choices.capacity(cases),
        *([outputs.output(cases), outputs.gradients(subject), outputs.gates(cases)] if judged else []),
        outputs.float32_router(subject),
        promises.check(subject, cases),
    ]


def _no_oracle(subject: Subject) -> Finding:
    name = type(subject.model.routers[0]).__name__
    meaning = (
        "nobody knows where its tokens should go: write the plain loop over tokens that it should agree with, which "
        "imports nothing from the router's file (docs/design.md)"
    )
    return Finding("oracle", Verdict.FAIL, f"{name}.oracle is None", meaning)


PARTS: dict[str, Callable[[Subject], list[Finding]]] = {
    "causality, by intervention": leaks.check,
    "scores: batches, cache, character by character": scores.check,
    "layers, each alone": _layers,
    "routers, over the validation split": routers.check,
}
OF_SWITCH_LAYERS = (_layers, routers.check)


def certify(subject: Subject, *, say: Say = silent) -> list[Finding]:
    """A dense model has no choices and routers to check."""
    findings: list[Finding] = []
    for name, check in PARTS.items():
        if subject.model.config.num_switch_layers or check not in OF_SWITCH_LAYERS:
            say(name, stage=True)
            findings += check(subject)
    limited = subject.limit(subject.model.config.eval_capacity_factor, training=False) is not None
    return with_judgements(findings, evaluation=subject.promise(training=False, limited=limited))
