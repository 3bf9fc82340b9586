"""How a report writes numbers, and its few sentences: what won, whether that is resolved, and what cannot be said."""

import math
from collections.abc import Iterator, Sequence

from switch_lm.reporting.comparisons import (
    EQUAL_COMPUTATION,
    LOSS,
    SECONDS,
    TRAIN_CAPACITY,
    Difference,
    Study,
    machines,
)
from switch_lm.reporting.records import DONE, FAILED, NOT_RUN, UNFINISHED
from switch_lm.reporting.variants import RANDOM_DROPS
from switch_lm.stats.intervals import Estimate

MISSING = "-"
FEW = 2  # more controlled comparisons than this are counted in the lead
WHAT = {LOSS: "loss at the last step", TRAIN_CAPACITY: "loss at the training capacity", SECONDS: SECONDS}
WHERE = {LOSS: "per step", TRAIN_CAPACITY: "at its training capacity", SECONDS: "on the clock"}


def plain(value: float | None, digits: int, scale: float = 1.0, unit: str = "") -> str:
    """With separators between thousands; "-" if it is missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value * scale:,.{digits}f}{unit}"


def figures(value: float | None, scale: float = 1.0) -> str:
    """With four significant digits and no exponent."""
    if not value:
        return MISSING if value is None else "0"
    return plain(value, max(0, 3 - math.floor(math.log10(abs(value * scale)))), scale)


def spread(estimate: Estimate | None, digits: int) -> str:
    """Mean ± standard deviation; the mean alone for one seed."""
    mean = plain(estimate.mean if estimate else None, digits)
    return mean if estimate is None or estimate.deviation is None else f"{mean} ± {plain(estimate.deviation, digits)}"


def interval(estimate: Estimate | None, digits: int) -> str:
    if estimate is None or estimate.low is None:
        return MISSING
    return f"{plain(estimate.low, digits)} to {plain(estimate.high, digits)}"


def count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def lead(study: Study, differences: Sequence[Difference]) -> str:
    """The first thing to know, in one or two sentences."""
    if not study.variants:
        return "No run is finished: there is nothing to compare yet."
    controlled = [d for d in differences if d.kind == EQUAL_COMPUTATION and d.figure == LOSS]
    if not controlled:
        absent = "sparse" if study.dense else "dense"
        why = f"There is no {absent} run here: nothing can be said about Switch against dense."
        if study.sparse and study.dense:
            why = (
                "No dense run here is a control of equal computation (that takes top-1 at factor 1.0 or dropless, with "
                "equal sizes and training): whether Switch does better than dense cannot be said."
            )
        best = min(study.variants, key=lambda variant: variant.mean(LOSS) or math.inf)
        loss = f"`{best.label}` with {spread(best.estimate(LOSS), 4)} ({count(len(best.by_seed(LOSS)), 'seed')})"
        return f"{why} The lowest mean loss at the last step is that of {loss}."
    if len(controlled) <= FEW:
        return " ".join(map(sentence, controlled))
    signs = [d.estimate.mean < 0.0 for d in controlled if d.estimate is not None and d.estimate.resolved]
    wins, losses, unresolved = sum(signs), len(signs) - sum(signs), len(controlled) - len(signs)
    return (
        f"{len(controlled)} comparisons of Switch with a dense control of equal computation, by the loss at the last "
        f"step: {wins} won, {losses} lost, {unresolved} not resolved."
    )


def sentence(difference: Difference) -> str:
    """One comparison; who wins is said only where it is resolved and the computation is equal."""
    kind, estimate, what = difference.kind, difference.estimate, WHAT[difference.figure]
    against = "" if kind == RANDOM_DROPS else f" of {kind}"
    start = f"`{difference.ours.label}` against `{difference.theirs.label}`{against}: {what}"
    if estimate is None:
        return f"{start} not compared, they have no seed in common."
    unit, digits = ("s", 1) if difference.figure == SECONDS else ("nats", 4)
    word = "lower" if estimate.mean < 0.0 else "higher"
    size = f"{word} by {plain(abs(estimate.mean), digits)} {unit}" if estimate.mean else "equal"
    sureness = "one seed, no interval"
    if estimate.count > 1:
        ends = interval(estimate, digits)
        sureness = f"95 % interval of the difference {ends}, {count(estimate.count, 'seed')}"
    outcome = f", Switch {'wins' if estimate.mean < 0.0 else 'loses'} {WHERE[difference.figure]}"
    known = estimate.resolved and kind == EQUAL_COMPUTATION
    return f"{start} {size} ({sureness}): {difference.verdict}{outcome if known else ''}."


def bullets(study: Study, differences: Sequence[Difference]) -> tuple[str, ...]:
    """What the lead leaves out of the comparisons that matter most, then what limits all of them."""
    main = [d for d in differences if d.kind in (EQUAL_COMPUTATION, RANDOM_DROPS) and d.estimate is not None]
    in_lead = [d for d in differences if d.kind == EQUAL_COMPUTATION and d.figure == LOSS]
    more = [d for d in main if d not in in_lead or len(in_lead) > FEW]
    return (*map(sentence, more), *_limits(study, differences))


def _limits(study: Study, differences: Sequence[Difference]) -> Iterator[str]:
    if any(not v.dropless for v in study.sparse) and not any(v.config.get(RANDOM_DROPS) for v in study.sparse):
        yield (
            "No run has `router.random_drop_rate`: the effect of a capacity on the loss cannot be told from that of "
            "dropping tokens at random, which acts as dropout on so small a text."
        )
    intervals = sum(d.estimate is not None and d.estimate.count > 1 for d in differences)
    if intervals:
        yield (
            f"{count(intervals, 'interval')} at 95 %, none corrected for their number: by chance about one in twenty "
            f"excludes 0 where there is no difference, here {plain(intervals / 20, 1)}."
        )
    single = [variant for variant in study.variants if len(variant.by_seed(LOSS)) == 1]
    if single and len(single) == len(study.variants):
        yield "Each variant has one seed: no difference is resolved."
    elif single:
        yield f"One seed, so no spread: {', '.join(f'`{variant.label}`' for variant in single)}."
    counts = {status: sum(r.status == status for r in study.records) for status in (DONE, FAILED, UNFINISHED, NOT_RUN)}
    counts["finished without a loss or a configuration"] = counts.pop(DONE) - len(study.used)
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    if parts:
        yield (
            f"Of {count(len(study.records), 'run')}, {len(study.used)} are used; {', '.join(parts)}: see What was run. "
            "The seeds that are left flatter a variant whose others failed because of a bad loss."
        )
    for variant in study.sparse:
        if (factor := variant.config.get("model.eval_capacity_factor")) is not None:
            yield f"`{variant.label}` validates at factor {factor}: its loss is not a dropless one."
    if (ways := len(machines(*study.variants))) > 1:
        yield f"The runs differ in machine, precision, threads or compiling, in {ways} ways: compare no seconds."
    if len({variant.config.get("text") for variant in study.variants}) > 1:
        yield "The runs were trained on different texts: their losses cannot be compared."
