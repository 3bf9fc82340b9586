"""One comparison in words: by how much, how sure, and what follows."""

from __future__ import annotations

from switch_lm.report.comparisons import EQUAL_PARAMETERS, RANDOM_DROPS, Difference, Rung, dropped_of, machines
from switch_lm.report.controls import more_training
from switch_lm.report.form import count, percent, plain, share, spread
from switch_lm.report.groups import Variant
from switch_lm.report.ladders import ALPHA, CAPACITY
from switch_lm.report.statistics import Estimate, estimate
from switch_lm.report.study import Study


def amount(difference: Difference, *, unit: str = "nats", digits: int = 4, words: str = "lower higher") -> str:
    """Such as: lower by 0.0310 nats (95 % interval 0.0200 to 0.0420, 3 seeds): resolved."""
    found = difference.estimate
    if found is None:
        return "not compared, since they share no seed"
    low_word, high_word = words.split()
    if found.mean == 0.0:
        size = f"equal to {digits} decimals"
    else:
        size = f"{low_word if found.mean < 0 else high_word} by {plain(abs(found.mean), digits)} {unit}"
    return f"{size} ({_sureness(found, digits)}): {difference.verdict}"


def _sureness(found: Estimate, digits: int) -> str:
    """The interval of the size as it is told, so that 0 lies outside it if it is resolved."""
    if found.low is None:
        return "one seed, no interval"
    told = -found if found.mean < 0 else found
    return f"95 % interval {plain(told.low, digits)} to {plain(told.high, digits)}, {count(found.count, 'seed')}"


def outcome(difference: Difference, where: str) -> str:
    """Who wins, where that is resolved: the first of the two is the Switch."""
    if not difference.resolved:
        return ""
    return f" Switch {'wins' if difference.lower else 'loses'} {where}."


def named(variant: Variant) -> str:
    return f"`{variant.label}`"


def per_step(difference: Difference, at_capacity: Difference | None) -> str:
    """Against the control of equal computation, at the last step."""
    ours, theirs = difference.ours, difference.theirs
    text = f"Per step: {named(ours)} against {named(theirs)} of equal computation{_work(ours, theirs)}: "
    text += f"loss {amount(difference)}.{outcome(difference, 'per step')}"
    if at_capacity is not None:
        text += f" With its training capacity in validation too: loss {amount(at_capacity)}."
        text += outcome(at_capacity, "there")
    return text


def _work(ours: Variant, theirs: Variant) -> str:
    """What is not equal: the router's products, and the optimizer's on all experts."""
    router, updates = more_training(ours, theirs), more_training(ours, theirs, optimizer=True)
    if router is None:
        return ""
    optimizer = "" if updates is None else f"; counting the optimizer's products too, {percent(updates)}"
    return f" (with the router's products it executes {percent(router)} in training{optimizer})"


def on_the_clock(difference: Difference, study: Study) -> str:
    """Seconds to the threshold, and for all steps."""
    ours, theirs = difference.ours, difference.theirs
    if study.threshold is None:
        return ""
    both = [reached(study, variant) for variant in (ours, theirs)]
    text = f"On the clock: to a loss of {study.threshold.shown}, {both[0]}; {both[1]}. "
    if len(machines(ours, theirs)) > 1:
        return text + "They ran on different machines, or in other ways there: their seconds are not compared."
    if difference.estimate is not None:
        size = amount(difference, unit="s", digits=1, words="shorter longer")
        text += f"Time to it is {size}.{outcome(difference, 'on the clock')}"
    else:
        text += "Not every seed gives a time, so the times are not compared."
    own, other = (variant.mean("training_seconds") for variant in (ours, theirs))
    return text + (f" All its steps together take {own / other:.2f} times as long." if own and other else "")


def reached(study: Study, variant: Variant) -> str:
    """Such as: `dense` takes 100.1 ± 2.0 s (2 of 3 seeds reach it)."""
    crossings = study.crossings(variant)
    times = [c.seconds for c in crossings.values() if c is not None and c.seconds is not None]
    hits = sum(crossing is not None for crossing in crossings.values())
    if not crossings:
        return f"{named(variant)} has no learning curve"
    if not hits:
        return f"{named(variant)} does not reach it"
    seconds = f"takes {spread(estimate(times), 1)} s" if times else "reaches it, seconds unknown"
    some = f" ({hits} of {len(crossings)} seeds reach it)" if hits < len(crossings) else ""
    return f"{named(variant)} {seconds}{some}"


def without_match(difference: Difference) -> str:
    """Against a dense variant of another computation: who wins is never said."""
    ours, theirs = difference.ours, difference.theirs
    more = more_training(ours, theirs)
    if difference.kind == EQUAL_PARAMETERS:
        less = more_training(theirs, ours)
        work = "" if less is None else f", which executes {percent(less)} in training"
        return f"{named(ours)} against {named(theirs)} of about equal parameters{work}: loss {amount(difference)}."
    work = "the computation of one is not known" if more is None else f"it executes {percent(more)} in training"
    text = f"{named(ours)} against {named(theirs)} is no match of computation ({work}): loss {amount(difference)}"
    return f"{text}. That says nothing about equal computation."


def rung(step: Rung) -> str:
    """What one step up a ladder costs and brings."""
    upper, lower, key = step.loss.ours, step.loss.theirs, step.ladder.key
    text = f"From {named(lower)} to {named(upper)}: "
    if key == CAPACITY:
        more = more_training(upper, lower)
        text += "" if more is None else f"{percent(more)} computation in training; "
    text += f"loss {amount(step.loss)}"
    if step.train_capacity is not None:
        text += f"; at the training capacity {amount(step.train_capacity)}"
    if key == ALPHA:
        text += _change("busiest expert", "times the mean", lower, upper, "load_max_over_mean")
        text += f"; dropped {share(dropped_of(lower))} and {share(dropped_of(upper))}"
    elif key != CAPACITY:
        own, other = upper.mean("parameters"), lower.mean("parameters")
        text += f"; {own / other:.1f} times the parameters" if own and other else ""
    return f"{text}."


def random_drops(difference: Difference) -> str:
    """What dropping at random does, and what a capacity does beyond it."""
    ours, theirs = difference.ours, difference.theirs
    text = f"{named(ours)} against {named(theirs)}"
    if ours.config.get(RANDOM_DROPS):
        effect = "lowers the loss here, as a regulariser does" if difference.lower else "costs loss here"
        return f"{text}: loss {amount(difference)}." + (f" Dropping at random {effect}." if difference.resolved else "")
    text += f", the nearest in what is dropped ({share(dropped_of(ours))}): loss {amount(difference)}."
    if difference.resolved:
        return f"{text} So its capacity does something else than drops at random do."
    return f"{text} So its effect can not be told from that of drops at random."


def _change(what: str, unit: str, lower: Variant, upper: Variant, key: str) -> str:
    return f"; {what} {plain(lower.mean(key), 2)} and {plain(upper.mean(key), 2)} {unit}"
