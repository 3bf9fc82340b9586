"""The pictures of a report: the frontier, learning curves, and what changes with capacity, alpha and experts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from switch_lm.pages.document import Picture, Series
from switch_lm.reporting.comparisons import AXES, LOSS, TRAINING, Axis, Study, dropped_of
from switch_lm.reporting.records import Point
from switch_lm.reporting.variants import ALPHA, CAPACITY, EXPERTS, Ladder, Variant, ladders
from switch_lm.stats.intervals import Estimate, estimate

INTERVAL = "Bars and bands: 95 % t interval over seeds; none for one seed."
FAR = 3.0  # costs that lie further apart are shown by their ratios
NAMES = {CAPACITY: "capacity factor", ALPHA: "alpha"}
ROUTING = {
    "dropped": "share of choices dropped in training",
    "load_max_over_mean": "busiest expert / mean",
    "router_entropy": "router entropy (nats)",
}
Places = Sequence[tuple[float, Estimate]]


def frontier_pictures(study: Study) -> list[Picture]:
    """One for each cost that is known of at least two variants."""
    return [_frontier(axis, study) for axis in AXES if len(axis.places(study.variants)) >= 2]


def curve_pictures(study: Study) -> list[Picture]:
    """Validation loss by step and by seconds, training loss by step; none without at least two points."""
    validations = {v: [curve.validations for curve in v.curves.values()] for v in study.variants}
    by_step = {v: _by_step([{p.step: p.loss for p in one} for one in curves]) for v, curves in validations.items()}
    by_time = {v: _by_time(curves) for v, curves in validations.items()}
    training = {v: _by_step([dict(curve.training) for curve in v.curves.values()]) for v in study.variants}
    loss = "validation loss (nats)"
    return [
        *_curves("learning_by_step", "Validation loss by step", "step", loss, by_step),
        *_curves("learning_by_seconds", "Validation loss by training seconds", "training seconds", loss, by_time),
        *_curves("training_loss", "Training loss by step", "step", "training loss (nats)", training),
    ]


def routing_pictures(study: Study) -> list[Picture]:
    """What is dropped, balance and entropy, by capacity factor and by alpha, where these vary."""
    by_rung = [picture for key in NAMES for figure in ROUTING for picture in _by_rung(study, key, figure)]
    return [*by_rung, *_loss_by_balance(study), *_loss_by_experts(study)]


def _series(label: str, places: Places, *, labels: Sequence[str] = (), marked: Sequence[bool] = ()) -> Series:
    """A line of means with their intervals; with `marked`, points. NaN is the end of an interval that is missing."""
    estimates = [one for _, one in places]
    some = any(one.low is not None for one in estimates)
    low, high = (
        tuple(math.nan if end is None else end for end in ends)
        for ends in ([one.low for one in estimates], [one.high for one in estimates])
    )
    return Series(
        label,
        x=tuple(x for x, _ in places),
        y=tuple(one.mean for one in estimates),
        low=low if some else None,
        high=high if some else None,
        labels=tuple(labels) or None,
        marked=tuple(marked) or None,
        line=not marked,
    )


def _frontier(axis: Axis, study: Study) -> Picture:
    members, places = axis.front(study.variants), axis.places(study.variants)
    loss = "dropless loss" if axis.loss == LOSS else "loss at the training capacity"
    heading, costs = axis.heading.split(",")[0], [cost for _, cost, _ in places]
    note = f"{INTERVAL} Ringed: the Pareto set by means."
    if axis.figure == TRAINING:
        note += " Executed matrix products of forward and backward passes, without the optimizer's."
    series = []
    for family in dict.fromkeys(variant.family for variant, _, _ in places):
        own = [place for place in places if place[0].family == family]
        labels, marked = [v.label for v, _, _ in own], [v.label in members for v, _, _ in own]
        series.append(_series(family, [(cost, one) for _, cost, one in own], labels=labels, marked=marked))
    names = ", ".join(variant.label for variant in study.variants if variant.label in members)
    return Picture(
        name=f"frontier_{axis.name}",
        title=f"{loss.capitalize()} against {heading[0].lower()}{heading[1:]}",
        alt=f"{loss.capitalize()} of each variant against its cost, {axis.heading}; not dominated: {names}.",
        x_label=heading,
        x_log=max(costs) >= FAR * min(costs) > 0.0,
        y_label=f"{loss} (nats)",
        series=tuple(series),
        note=note,
    )


def _curves(name: str, title: str, x_label: str, y_label: str, places: Mapping[Variant, Places]) -> Iterator[Picture]:
    series = tuple(_series(variant.label, curve) for variant, curve in places.items() if len(curve) >= 2)
    alt = f"{title}, a line for each of: {', '.join(one.label for one in series)}."
    note = f"Mean over seeds, at the steps that all of them have. {INTERVAL}"
    if series:
        yield Picture(name, title, alt, x_label, y_label, series, note=note)


def _by_step(curves: Sequence[Mapping[int, float]]) -> Places:
    """At the steps that all curves have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    estimates = [(float(step), estimate([curve[step] for curve in curves])) for step in shared]
    return [(step, loss) for step, loss in estimates if loss is not None]


def _by_time(curves: Iterable[Sequence[Point]]) -> Places:
    """At the mean of the seconds that the seeds took to a step; no step of which a time is missing."""
    timed = [{point.step: point for point in points if point.seconds is not None} for points in curves]
    losses = _by_step([{step: point.loss for step, point in one.items()} for one in timed])
    return [(fmean(one[int(step)].seconds or 0.0 for one in timed), loss) for step, loss in losses]


def _by_rung(study: Study, key: str, figure: str) -> Iterator[Picture]:
    """One place for each value of the key, so that no limit, and an alpha of 0, have theirs."""
    found, name, words = ladders(study.variants, key), NAMES[key], ROUTING[figure]
    rungs = sorted({ladder.value(v): ladder.shown(v) for ladder in found for v in ladder.rungs}.items())
    order, series = [value for value, _ in rungs], []
    for ladder in found:
        values = [(v, dropped_of(v) if figure == "dropped" else v.estimate(figure)) for v in ladder.rungs]
        places = [(float(order.index(ladder.value(v))), one) for v, one in values if one is not None]
        series += [_series(_common(ladder), places)] if len(places) >= 2 else []
    if series:
        yield Picture(
            name=f"{figure}_by_{name.replace(' ', '_')}",
            title=f"{words[0].upper()}{words[1:]}, by {name}",
            alt=f"{words} for each {name}: {', '.join(shown for _, shown in rungs)}.",
            x_label=name,
            y_label=words,
            series=tuple(series),
            note=INTERVAL,
            x_names=tuple(shown for _, shown in rungs),
        )


def _common(ladder: Ladder) -> str:
    """What the rungs of a ladder have in common, by their labels."""
    parts = [variant.label.split(", ") for variant in ladder.rungs]
    return ", ".join(part for part in parts[0] if all(part in others for others in parts)) or "Switch"


def _loss_by_balance(study: Study) -> Iterator[Picture]:
    """What a balance loss buys and costs, one point for each alpha."""
    series = []
    for ladder in ladders(study.variants, ALPHA):
        known = [(ladder.shown(v), v.mean("load_max_over_mean"), v.estimate(LOSS)) for v in ladder.rungs]
        places = [(f"alpha {shown}", x, loss) for shown, x, loss in known if x is not None and loss is not None]
        labels = [label for label, _, _ in places]
        series += [_series(_common(ladder), [place[1:] for place in places], labels=labels)] if len(places) >= 2 else []
    if series:
        yield Picture(
            name="loss_by_balance",
            title="Loss against balance, by alpha",
            alt="Dropless loss at the last step against the busiest expert's load over the mean, a point per alpha.",
            x_label="busiest expert / mean",
            y_label="dropless loss (nats)",
            series=tuple(series),
            note=f"Joined in the order of alpha. {INTERVAL}",
        )


def _loss_by_experts(study: Study) -> Iterator[Picture]:
    series = []
    for ladder in ladders(study.variants, EXPERTS):
        losses = [(ladder.value(v), v.estimate(LOSS)) for v in ladder.rungs]
        series.append(_series(_common(ladder), [(experts, loss) for experts, loss in losses if loss is not None]))
    if series:
        yield Picture(
            name="loss_by_experts",
            title="Loss by number of experts",
            alt="Dropless loss at the last step by number of experts, at equal computation without the router.",
            x_label="experts in a layer",
            y_label="dropless loss (nats)",
            series=tuple(series),
            x_log=True,
            note=INTERVAL,
        )
