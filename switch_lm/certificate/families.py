"""What the certificate found of one family of routers, as a row of the table of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from switch_lm.certificate.finding import Finding, Verdict
from switch_lm.certificate.gaps import of_figures
from switch_lm.stats.intervals import Estimate


@dataclass(frozen=True)
class Row:
    """The figures of one family. Those without another word are of training's rule, at the capacity of training."""

    router: str
    verdict: Verdict  # FAIL: of any check; LEAKS: of its own future, in training or evaluation
    own_future: Verdict
    other_rows: Verdict
    by_future: float  # the largest move of a logit, at any capacity tried, as a share of the largest logit
    by_rows: float
    gap: Estimate | None  # the loss of a window, less that of its characters read one by one; nats per character
    future: Estimate | None  # how much of it the future makes; None: nothing of it can
    without_slot: float  # share of choices
    busiest: float  # load of the busiest expert, x an even share; over the validation split, as validation routes
    experts_per_token: float  # there too
    failed: list[str]  # checks
    state: str  # when this holds: see `Promise`
    seconds: float


def row(router: str, findings: Sequence[Finding], *, state: str, seconds: float) -> Row:
    """From all findings of a model that routes."""
    by_check = {finding.check: finding for finding in findings}
    failed = [finding.check for finding in findings if finding.verdict == Verdict.FAIL]
    future, rows = (_both(by_check, leak) for leak in ("own future", "other rows"))
    gap, loads = by_check["loss gap, training"].figures, by_check["every expert used"].figures
    slots = by_check["own future, training"].figures.items()
    return Row(
        router=router,
        verdict=Verdict.FAIL if failed else future[0],
        own_future=future[0],
        other_rows=rows[0],
        by_future=future[1],
        by_rows=rows[1],
        gap=of_figures(gap),
        future=of_figures(gap, "future "),
        without_slot=next(share for name, share in slots if name.startswith("without a slot")),
        busiest=loads["most"],
        experts_per_token=loads["experts_per_token"],
        failed=failed,
        state=state,
        seconds=seconds,
    )


def _both(by_check: dict[str, Finding], leak: str) -> tuple[Verdict, float]:
    """The worse verdict of training and evaluation, and the largest move of both."""
    both = [by_check[f"{leak}, {where}"] for where in ("training", "evaluation")]
    moves = [move for finding in both for name, move in finding.figures.items() if name.startswith("move")]
    worst = max((finding.verdict for finding in both), key=list(Verdict).index)
    return worst, max(moves, key=lambda move: (move != move, move))  # or NaN
