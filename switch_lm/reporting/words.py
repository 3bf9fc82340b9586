"""How a report writes numbers, and its few sentences: what won, whether that is resolved, and what cannot be said."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from switch_lm.config.rules import show
from switch_lm.reporting.cohorts import cohort_keys, loose_keys
from switch_lm.reporting.comparisons import (
    CONTROL,
    KINDS,
    REST,
    SECONDS,
    Difference,
    Study,
    assumed_alike,
    confidences,
    family_pairs,
)
from switch_lm.reporting.controls import (
    EQUAL,
    EQUAL_COMPUTATION,
    LOSS,
    TRAIN_CAPACITY,
    machines,
    more_in_all,
    more_training,
)
from switch_lm.reporting.keys import is_ignored
from switch_lm.reporting.records import DONE, FAILED, NOT_RUN, UNFINISHED
from switch_lm.reporting.variants import RANDOM_DROPS, Variant
from switch_lm.stats.contrasts import ENOUGH_SEEDS
from switch_lm.stats.corrections import ASSUMED, planned
from switch_lm.stats.intervals import POWER, Estimate

MISSING = "-"
FEW = 2  # more comparisons with one control than this are counted in the lead
WHAT = {LOSS: "loss at the last step", TRAIN_CAPACITY: "loss at the training capacity"}
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
    """Mean ± half of the 95 % interval."""
    mean = plain(estimate.mean if estimate else None, digits)
    if estimate is None or (half := estimate.half()) is None:
        return f"{mean} (one seed)" if estimate is not None and estimate.count == 1 else mean
    return f"{mean} ± {plain(half, digits)}"


def interval(ends: tuple[float, float] | None, digits: int) -> str:
    return MISSING if ends is None else f"{plain(ends[0], digits)} to {plain(ends[1], digits)}"


def ratios(ends: tuple[float, float] | None) -> str:
    """The interval of a ratio from that of its logarithm."""
    return MISSING if ends is None else interval((math.exp(ends[0]), math.exp(ends[1])), 2)


def percents(differences: Sequence[Difference], between: str = "with the optimizer's ") -> str:
    """How many more products the first of each takes in training: the model's, and all with the optimizer's."""
    shares = [[more(d.ours, d.theirs) for d in differences] for more in (more_training, more_in_all)]
    known = [sorted(100 * share for share in own if share is not None) for own in shares]
    texts = [" to ".join(dict.fromkeys(f"{share:+.1f} %" for share in own[:1] + own[-1:])) for own in known if own]
    return f", {between}".join(texts)


def count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def planned_words(jobs: Sequence[Mapping[str, Any]]) -> str:
    """The difference that so many variants and seeds resolve; nothing for a search, or where nothing is compared."""
    variants = {tuple(show(value) for key, value in job.items() if not is_ignored(key)) for job in jobs}
    seeds = {show(job["seed"]) for job in jobs if "seed" in job}
    if len(variants) < 2:
        return ""
    if (difference := planned(len(variants), len(seeds))) is None:
        return "no difference, with one seed; several: seed=0,1,2,3,4"
    runs = f"{len(variants)} variants, {len(seeds)} seeds, a deviation of {ASSUMED:.3f} assumed"
    return f"a difference of {difference:.3f} nats from one control, in {POWER * 100:.0f} % of such sweeps ({runs})"


def lead(study: Study, differences: Sequence[Difference]) -> str:
    """The first thing to know. It rests on the comparisons with the controls alone."""
    if not study.variants:
        return "No run is finished: there is nothing to compare yet."
    control = [d for d in differences if d.family == CONTROL]
    controlled = [d for d in control if d.kind in EQUAL]
    shown = controlled or [d for d in control if d.kind in KINDS or d.ours.dense == d.theirs.dense]
    groups: dict[tuple[Variant, str], list[Difference]] = {}
    for one in shown:
        groups.setdefault((one.theirs, one.kind if one.kind in KINDS else ""), []).append(one)
    parts = [] if controlled else [_without_control(study)]
    parts += [_against(study, members, kind, first=not n) for n, ((_, kind), members) in enumerate(groups.items())]
    if seeds := sorted({one.compared.estimate.count for one in shown if one.compared and one.compared.interval}):
        numbers = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        number = sum(one.compared is not None and one.compared.interval is not None for one in control)
        every = f"{count(number, 'comparison')} with a control"
        parts.append(f"(95 % intervals, corrected for {every}; {numbers} seeds.)")
    return " ".join(parts)


def _without_control(study: Study) -> str:
    """Why nothing is said of Switch against dense, and what is known of runs that are compared with none."""
    why = f"There is no {'sparse' if study.dense else 'dense'} run here: nothing is said of Switch against dense."
    if study.sparse and study.dense:
        why = (
            "No dense run here is a control of equal computation (that takes top-1 at factor 1.0 or dropless, with "
            "equal sizes and training, or as many products in all): whether Switch beats dense cannot be said."
        )
    best = min(study.variants, key=lambda variant: variant.mean(LOSS) or math.inf)
    loss = f"loss at the last step, of `{best.label}`, is {spread(best.estimate(LOSS), 4)}"
    if any(variant.searched for variant in study.variants):
        return f"{why} The lowest {loss}: chosen from the trials of a search, it is too low."
    return why if len(study.variants) > 1 else f"{why} The {loss}."


def _against(study: Study, members: Sequence[Difference], kind: str, *, first: bool) -> str:
    """All variants that have one control, in a sentence."""
    theirs = members[0].theirs
    what = next((f", {cohort.origin}" for cohort in study.cohorts if cohort.control is theirs and cohort.origin), "")
    if kind:
        what = f" of {kind}{f' ({more})' if (more := percents(members)) else ''}"
    start = f"{'Loss at the last step, against' if first else 'Against'} `{theirs.label}`{what}: "
    if len(members) <= FEW:
        return start + "; ".join(f"`{one.ours.label}` {_outcome(one)}" for one in members) + "."
    signs = [one.estimate.mean < 0.0 for one in members if one.estimate is not None and one.resolved]
    words = ("wins", "losses") if kind in EQUAL else ("lower", "higher")
    wins, losses = sum(signs), len(signs) - sum(signs)
    numbers = f"{words[0]}: {wins}, {words[1]}: {losses}, not resolved: {len(members) - len(signs)}"
    return f"{start}{len(members)} variants ({numbers})."


def _outcome(difference: Difference) -> str:
    """By how much where that is resolved, else within what; who wins is said only where the computation is equal."""
    if difference.compared is None:
        return "not compared"
    mean, ends, digits, unit = difference.compared.estimate.mean, difference.compared.interval, 4, "nats"
    size = f"{'lower' if mean < 0.0 else 'higher'} by {plain(abs(mean), digits)} nats"
    size = "equal" if math.isclose(mean, 0.0, abs_tol=1e-9) else size  # least squares rounds
    if difference.time is not None:
        if difference.time.bound is None:
            return difference.verdict
        size, unit = f"{difference.time.bound}{math.exp(mean):.2f} times as long", "times as long"
    if ends is None:
        return f"{size}, {difference.verdict}"
    within = ratios(ends) if difference.time is not None else interval(ends, digits)
    if not difference.resolved:
        return f"{difference.verdict} ({within} {unit})"
    outcome = f", Switch {'wins' if mean < 0.0 else 'loses'} {WHERE[difference.figure]}"
    return f"{size} ({within}){outcome if difference.kind in EQUAL else ', resolved'}"


def sentence(difference: Difference) -> str:
    """One comparison that is not in the lead."""
    ours, theirs, time = difference.ours.label, difference.theirs.label, difference.time
    what = WHAT[difference.figure] if time is None else f"time to a loss of {time.loss:g}"
    return f"`{ours}` against `{theirs}`, {what}: {_outcome(difference)}{missed(difference)}."


def missed(difference: Difference) -> str:
    """How many seeds did not reach the loss to which times are counted."""
    if (time := difference.time) is None:
        return ""
    sides = ((difference.ours, time.ours_missed), (difference.theirs, time.theirs_missed))
    texts = [f"{number} of {time.estimate.count} of `{v.label}` did not reach it" for v, number in sides if number]
    return f"; {', '.join(texts)}" if texts else ""


def bullets(study: Study, differences: Sequence[Difference]) -> tuple[str, ...]:
    """What the lead leaves out of the comparisons that matter most, then what limits all of them."""
    main = [d for d in differences if d.family == REST and d.kind in (EQUAL_COMPUTATION, RANDOM_DROPS)]
    return (*(sentence(d) for d in main if d.estimate is not None), *_statistics(study), *_limits(study))


def _statistics(study: Study) -> Iterator[str]:
    for cohort, confidence in confidences(study).items():
        pool, name = cohort.pools[LOSS], f" (control `{cohort.control.label}`)" if len(study.cohorts) > 1 else ""
        if len(pool.values) < 2 or max(map(len, pool.values.values())) < 2:
            continue
        smallest = pool.detectable(family_pairs(cohort), confidence)
        if pool.one_way:
            yield f"Seeds do not link all variants{name}: Welch's t compares them, as if seeds had no effect."
        elif pool.least_squares.freedom == 0:
            yield f"Too few runs share seeds{name}: no deviation is known, so no interval."
        elif smallest is not None:
            apart = f", but for {', '.join(f'`{variant.label}`' for variant in pool.wider)}" if pool.wider else ""
            yield (
                f"Runs scatter by {plain(pool.least_squares.deviation, 4)} nats{apart}{name}: such a sweep resolves a "
                f"difference of {plain(smallest, 3)} nats from the control{', on average' if apart else ''}, in "
                f"{POWER * 100:.0f} % of repeats."
            )
    if assumed_alike(study.cohorts):
        others = "other " if any(cohort.pools[LOSS].left_out for cohort in study.cohorts) else ""
        yield (
            f"With fewer than {ENOUGH_SEEDS} seeds unequal spreads cannot be detected: all {others}variants are "
            "assumed to scatter alike."
        )
    if loose := loose_keys(study.variants):
        keys = ", ".join(f"`{key}`" for key in loose)
        yield f"Runs that no sweep varied are taken to differ on purpose in {keys}."
    if len(study.cohorts) > 1:
        keys = ", ".join(f"`{key}`" for key in cohort_keys(study.cohorts)) or "keys that no sweep varied"
        yield f"The runs form {len(study.cohorts)} groups that differ in {keys}: nothing is compared between them."
    if any(variant.searched for variant in study.variants):
        yield "The trials of a search were chosen by their results: no interval holds, and none is given."


def _limits(study: Study) -> Iterator[str]:
    if any(not v.dropless for v in study.sparse) and not any(v.config.get(RANDOM_DROPS) for v in study.sparse):
        yield (
            "No run has `router.random_drop_rate`: the effect of a capacity on the loss cannot be told from that of "
            "dropping tokens at random, which acts as dropout on so small a text."
        )
    single = [variant for variant in study.variants if variant.seeds == 1 and not variant.searched]
    if single and len(single) == len(study.variants):
        yield "Each variant has one seed: no difference is resolved. Several are given by `seed=0,1,2,3,4`."
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
            yield f"`{variant.label}` validates at factor {factor}: its validation loss includes drops."
    if (ways := len(machines(*study.variants))) > 1:
        yield f"The runs differ in machine, precision, threads or compiling, in {ways} ways: compare no seconds."
    if len({variant.config.get("text") for variant in study.variants}) > 1:
        yield "The runs were validated on different texts: their losses cannot be compared."
