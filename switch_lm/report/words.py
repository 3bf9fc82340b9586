"""What the numbers say in words: what won, by how much, whether that is resolved, and what can not be said."""

from __future__ import annotations

from collections.abc import Iterator

from switch_lm.report.comparisons import RANDOM_DROPS, Comparisons, Difference, machines
from switch_lm.report.form import count, plain, spread
from switch_lm.report.records import DONE, FAILED, NOT_RUN, UNFINISHED
from switch_lm.report.sentences import amount, named, on_the_clock, outcome, per_step, random_drops, rung, without_match
from switch_lm.report.study import LOSS, Study

FEW = 2  # more comparisons than this are counted in the lead, not told one by one


def lead(study: Study, found: Comparisons) -> str:
    """The first thing to know, in one or two sentences."""
    if not study.variants:
        return "No run is finished: there is nothing to compare yet."
    if not found.controlled:
        best = min(study.variants, key=lambda variant: variant.mean(LOSS) or 0.0)
        loss = f"{named(best)} with {spread(best.estimate(LOSS), 4)} ({count(len(best.by_seed(LOSS)), 'seed')})"
        return f"{_no_control(study)} The lowest mean loss at the last step is that of {loss}."
    if len(found.controlled) > FEW:
        return _counted(found.controlled)
    at_capacity = {id(difference.ours): difference for difference in found.at_capacity}
    return " ".join(_short(difference, at_capacity.get(id(difference.ours))) for difference in found.controlled)


def words(study: Study, found: Comparisons) -> tuple[str, ...]:
    """Every statement that the numbers allow, the primary ones first, then their limits."""
    return tuple(text for text in [*_primary(study, found), *_secondary(study, found), *_limits(study, found)] if text)


def _primary(study: Study, found: Comparisons) -> Iterator[str]:
    at_capacity = {id(difference.ours): difference for difference in found.at_capacity}
    for difference, seconds in zip(found.controlled, found.seconds, strict=True):
        yield per_step(difference, at_capacity.get(id(difference.ours)))
        yield on_the_clock(seconds, study)
    if not found.controlled:
        yield _no_control(study)


def _secondary(study: Study, found: Comparisons) -> Iterator[str]:
    yield from map(without_match, found.others)
    yield from map(rung, found.rungs)
    yield from map(random_drops, found.random_drops)
    limited = any(not variant.dropless for variant in study.sparse)
    if limited and not any(variant.config.get(RANDOM_DROPS) for variant in study.sparse):
        yield (
            "There is no run with `random_drop_rate`: what a capacity does to the loss can not be told from what "
            "dropping tokens at random does, which on so small a text acts as dropout."
        )


def _limits(study: Study, found: Comparisons) -> Iterator[str]:
    if found.count:
        yield (
            f"{count(found.count, 'interval was', 'intervals were')} looked at. At 95 % about one in twenty excludes "
            f"0 by chance where there is no difference (here {plain(found.count / 20, 1)}); none is corrected for that."
        )
    yield _seeds(study)
    yield _missing(study)
    for variant in study.sparse:
        if (factor := variant.config.get("model.eval_capacity_factor")) is not None:
            yield f"{named(variant)} validates at factor {factor}: its loss is not a dropless one."
    if len(found_on := machines(*study.variants)) > 1:
        yield f"The runs were made in {len(found_on)} ways (machine, precision, threads, compiled): compare no seconds."
    if len({variant.config.get("text") for variant in study.variants}) > 1:
        yield "The runs were made on different texts: losses of two texts can not be compared."


def _no_control(study: Study) -> str:
    if not study.sparse:
        return "There is no sparse run here: nothing can be said about Switch against dense."
    if not study.dense:
        return "There is no dense run here: nothing can be said about Switch against dense."
    return (
        "No dense run here is a control of equal computation (that takes top-1 at factor 1.0 or dropless, with equal "
        "sizes and training): it can not be said whether Switch does better than dense."
    )


def _seeds(study: Study) -> str:
    """Which variants have one seed only, or not the seeds of the others."""
    single = [variant for variant in study.variants if len(variant.by_seed(LOSS)) == 1]
    if single and len(single) == len(study.variants):
        return "Each variant has one seed: no difference is resolved."
    if single:
        return f"One seed only, so without a spread: {', '.join(named(variant) for variant in single)}."
    return ""


def _missing(study: Study) -> str:
    counts = {status: sum(r.status == status for r in study.records) for status in (FAILED, UNFINISHED, NOT_RUN)}
    unused = sum(record.status == DONE for record in study.records) - len(study.used)
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    parts += [f"{unused} finished without figures that can be used"] if unused else []
    if not parts:
        return ""
    return (
        f"Of {count(len(study.records), 'run')}, {len(study.used)} are used; {', '.join(parts)}: see What was run. A "
        "variant is judged by the seeds that are left, which flatters it if the others failed for a bad loss."
    )


def _counted(differences: list[Difference]) -> str:
    wins = sum(d.resolved and d.lower for d in differences)
    losses = sum(d.resolved and not d.lower for d in differences)
    open_ = len(differences) - wins - losses
    control = named(differences[0].theirs)
    told = [f"{wins} win per step", f"{losses} lose", f"{open_} are not resolved"]
    parts = [text for text, number in zip(told, (wins, losses, open_), strict=True) if number]
    return (
        f"Of {len(differences)} Switch variants with a dense control of equal computation ({control}): "
        f"{', '.join(parts)}, by the loss at the last step."
    )


def _short(difference: Difference, at_capacity: Difference | None) -> str:
    who = f"{named(difference.ours)} against {named(difference.theirs)} of equal computation"
    own, other = (variant.mean("training_seconds") for variant in (difference.ours, difference.theirs))
    known = own and other and len(machines(difference.ours, difference.theirs)) == 1
    clock = f" Its steps take {own / other:.2f} times as long." if known and own and other else ""
    text = f"{who}: loss at the last step {amount(difference)}.{outcome(difference, 'per step')}"
    if at_capacity is not None and at_capacity.resolved and not at_capacity.lower:
        text += " With its training capacity in validation too, Switch loses."
    return text + clock
