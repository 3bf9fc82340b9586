"""The pictures of a report: the frontier, learning curves, and what changes with capacity, alpha and experts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from switch_lm.pages.document import Picture, Place, Scatter, Series
from switch_lm.pages.numbers import figures
from switch_lm.reporting.comparisons import Study, dropped_of
from switch_lm.reporting.controls import LOSS
from switch_lm.reporting.frontier import AXES, Axis
from switch_lm.reporting.records import Point
from switch_lm.reporting.variants import ALPHA, CAPACITY, EXPERTS, Variant, family, ladders
from switch_lm.reporting.words import spread
from switch_lm.stats.intervals import Estimate, estimate

INTERVAL = "Bars and bands: 95% intervals; none for one seed."
NO_INTERVAL = (math.nan, math.nan)
MOST_DROPS = 4  # variants whose drops are shown by layer
FAR = 3.0  # costs that lie further apart are shown by their ratios
BUSIEST = "busiest expert / mean"
NAMES = {CAPACITY: "capacity factor", ALPHA: "alpha"}
ROUTING = {
    "dropped": "share of choices dropped in training",
    "load_max_over_mean": BUSIEST,
    "router_entropy": "router entropy (nats)",
}
Places = Sequence[tuple[float, Estimate]]
Xs = Mapping[Variant, float | None]
Ys = Mapping[Variant, Estimate | None]


def frontier_pictures(study: Study) -> list[Scatter]:
    """One for each cost that is known of at least two variants; of times only those of one machine."""
    shown = [axis for axis in AXES if not (axis.timed and study.several_machines)]
    return [_frontier(axis, study) for axis in shown if len(axis.places(study.variants)) >= 2]


def curve_pictures(study: Study) -> list[Picture]:
    """Validation loss by step and by seconds, training loss by step; none without at least two points.

    None by seconds where there are several machines.
    """
    curves = {v: list(v.curves.values()) for v in study.variants}
    by_step = {v: _by_step([{p.step: p.loss for p in one.validations} for one in own]) for v, own in curves.items()}
    timed = {} if study.several_machines else curves
    by_time = {v: _by_time([one.validations for one in own]) for v, own in timed.items()}
    training = {v: _by_step([dict(one.training) for one in own]) for v, own in curves.items()}
    loss = "validation loss (nats)"
    pictures = [
        _curves("learning_by_step", "Validation loss by step", "step", loss, by_step),
        _curves("learning_by_seconds", "Validation loss by training seconds", "training seconds", loss, by_time),
        _curves("training_loss", "Training loss by step", "step", "training loss (nats)", training),
    ]
    return [picture for picture in pictures if picture.series]


def routing_pictures(study: Study) -> list[Picture]:
    """What is dropped, balance and entropy, by capacity factor and by alpha, where these vary."""
    by_rung = [_by_rung(study, key, figure) for key in NAMES for figure in ROUTING]
    balance = {v: v.mean("load_max_over_mean") for v in study.sparse}
    experts = {v: v.level(EXPERTS) for v in study.sparse}
    pictures = [*_drops_by_layer(study), *by_rung]
    pictures += [_loss_by(study, ALPHA, balance, "loss_by_balance", "Loss against balance, by alpha", BUSIEST)]
    pictures += [
        _loss_by(study, EXPERTS, experts, "loss_by_experts", "Loss by number of experts", "experts in a layer")
    ]
    return [picture for picture in pictures if picture.series]


def _drops_by_layer(study: Study) -> list[Picture]:
    """The share of choices dropped by step, of the variants that drop most: a line for each layer, seeds averaged."""
    shares = {v: share.mean for v in study.sparse if (share := dropped_of(v)) and share.mean > 0.0}
    pictures = []
    for n, variant in enumerate(sorted(shares, key=lambda v: -shares[v])[:MOST_DROPS]):
        curves = [dict(one.dropped) for one in variant.curves.values()]
        layers = sorted({layer for one in curves for at in one.values() for layer in at})
        lines = {
            f"layer {n:02d}": _by_step([{s: at[n] for s, at in one.items() if n in at} for one in curves])
            for n in layers
        }
        series = [_series(name, [(x, Estimate(y.mean, y.count)) for x, y in line]) for name, line in lines.items()]
        title = f"Share of choices dropped in training, by layer: {variant.label}"
        pictures.append(Picture(f"dropped_by_layer_{n}", title, f"{title}.", "step", "share dropped", tuple(series)))
    return pictures


def _series(label: str, places: Places, *, labels: Sequence[str] = ()) -> Series:
    """A line of means with their intervals; NaN is the end of one that is missing."""
    intervals = [y.interval() for _, y in places]
    ends = [NO_INTERVAL if interval is None else interval for interval in intervals] if any(intervals) else None
    return Series(
        label,
        x=tuple(x for x, _ in places),
        y=tuple(y.mean for _, y in places),
        low=tuple(low for low, _ in ends) if ends else None,
        high=tuple(high for _, high in ends) if ends else None,
        labels=tuple(labels) or None,
    )


def _frontier(axis: Axis, study: Study) -> Scatter:
    members, places = axis.front(study.variants), axis.places(study.variants)
    quality = "dropless loss" if axis.loss == LOSS else "loss at the training capacity"
    heading, costs = axis.heading.split(",")[0], [cost for _, cost, _ in places]
    common = set.intersection(*(set(v.label.split(", ")) for v in study.sparse)) if len(study.sparse) > 1 else set()
    shown = []
    for variant, cost, loss in places:
        kind, figure, losses = family(variant.config), variant.by_seed(axis.figure), variant.by_seed(axis.loss)
        shown.append(Place(
            label=", ".join(part for part in variant.label.split(", ") if part not in common),
            kind=kind, level=None if variant.dense else variant.level(CAPACITY), front=variant.label in members,
            group=kind if variant.dense else f"{kind}, {'factor ' * (not variant.dropless)}{variant.shown(CAPACITY)}",
            x=cost, y=loss.mean, runs=tuple((axis.of(figure.get(s, 0.0)) or cost, y) for s, y in losses.items()),
            hover=f"{variant.label}: {spread(loss, 4)} nats at {figures(cost)}, {heading}",
        ))  # fmt: skip
    names = "; ".join(variant.label for variant in study.variants if variant.label in members)
    title = f"{quality.capitalize()} against {heading[0].lower()}{heading[1:]}"
    alt = f"{quality.capitalize()} of each variant against its cost, {axis.heading}; not dominated: {names}."
    note = "A dot for each seed, a mark for the mean." if len(shown) < len(study.used) else ""
    x_log, y_label = max(costs) >= FAR * min(costs) > 0.0, f"{quality} (nats)"
    return Scatter(f"frontier_{axis.name}", title, alt, heading, y_label, tuple(shown), x_log, note)


def _curves(name: str, title: str, x_label: str, y_label: str, places: Mapping[Variant, Places]) -> Picture:
    shown = {v: [(x, Estimate(y.mean, y.count)) for x, y in own] if v.searched else own for v, own in places.items()}
    series = tuple(_series(variant.label, curve) for variant, curve in shown.items() if len(curve) >= 2)
    alt = f"{title}, a line for each of: {', '.join(one.label for one in series)}."
    note = f"Mean over seeds, at the steps that all of them have. {INTERVAL}"
    return Picture(name, title, alt, x_label, y_label, series, note=note)


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


def _along(study: Study, key: str, x: Xs, y: Ys, *, label: bool = False) -> tuple[Series, ...]:
    """A line for each ladder of the key on which two places or more are known; `label` writes the values of the key."""
    lines = []
    for ladder in ladders(study.variants, key):
        known = [(v, at, value) for v in ladder if (at := x.get(v)) is not None and (value := y.get(v)) is not None]
        parts = [variant.label.split(", ") for variant in ladder]
        common = ", ".join(part for part in parts[0] if all(part in others for others in parts)) or "Switch"
        labels = [f"{key} {v.shown(key)}" for v, _, _ in known] if label else []
        if len(known) >= 2:
            lines.append(_series(common, [(at, value) for _, at, value in known], labels=labels))
    return tuple(lines)


def _by_rung(study: Study, key: str, figure: str) -> Picture:
    """One place for each value of the key, so that no limit, and an alpha of 0, have theirs."""
    name, words = NAMES[key], ROUTING[figure]
    rungs = [variant for ladder in ladders(study.variants, key) for variant in ladder]
    shown = dict(sorted((rung.level(key), rung.shown(key)) for rung in rungs))
    places = {v: float(list(shown).index(v.level(key))) for v in rungs}
    values = {v: dropped_of(v) if figure == "dropped" else v.estimate(figure) for v in rungs}
    some = any(value.mean for value in values.values() if value)
    title, alt = f"{words[0].upper()}{words[1:]}, by {name}", f"{words} for each {name}: {', '.join(shown.values())}."
    series, stem = _along(study, key, places, values) if some else (), f"{figure}_by_{name.replace(' ', '_')}"
    return Picture(stem, title, alt, name, words, series, note=INTERVAL, x_names=tuple(shown.values()))


def _loss_by(study: Study, key: str, x: Xs, name: str, title: str, x_label: str) -> Picture:
    """What a balance loss buys and costs, a point for each alpha; and the loss by number of experts, on a log axis."""
    of_alpha, losses = key == ALPHA, {v: v.estimate(LOSS) for v in study.sparse}
    alt = f"Dropless loss at the last step by {x_label}{', a point per alpha' * of_alpha}."
    note, series = "Joined in the order of alpha. " * of_alpha + INTERVAL, _along(study, key, x, losses, label=of_alpha)
    return Picture(name, title, alt, x_label, "dropless loss (nats)", series, x_log=not of_alpha, note=note)
