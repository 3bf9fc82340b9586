"""Pictures of what changes from rung to rung: drops, balance and entropy, loss by alpha and by experts."""

from __future__ import annotations

from switch_lm.pages.document import Picture
from switch_lm.report.groups import Variant
from switch_lm.report.ladders import ALPHA, CAPACITY, EXPERTS, Ladder, ladders
from switch_lm.report.series import INTERVAL, series_of
from switch_lm.report.statistics import Estimate
from switch_lm.report.study import LOSS, Study

NAMES = {CAPACITY: "capacity factor", ALPHA: "alpha", EXPERTS: "number of experts"}
ROUTING = (
    ("dropped", "share of choices dropped in training"),
    ("load_max_over_mean", "busiest expert / mean"),
    ("router_entropy", "router entropy (nats)"),
)


def routing_pictures(study: Study) -> list[Picture]:
    """What is dropped, balance and entropy, by capacity factor and by alpha, where these vary."""
    drawn = [_by_rung(study, key, figure, words) for key in (CAPACITY, ALPHA) for figure, words in ROUTING]
    return [picture for picture in [*drawn, _loss_by_balance(study), _loss_by_experts(study)] if picture is not None]


def _value(variant: Variant, figure: str) -> Estimate | None:
    if figure == "dropped" and (whole := variant.estimate("dropped_whole_run")) is not None:
        return whole
    return variant.estimate(figure)


def _by_rung(study: Study, key: str, figure: str, words: str) -> Picture | None:
    """One place for each value of the key, so that no limit, and an alpha of 0, have theirs."""
    found = ladders(study.variants, key)
    rungs = sorted({ladder.value(v): ladder.shown(v) for ladder in found for v in ladder.rungs}.items())
    order = [value for value, _ in rungs]
    series = []
    for ladder in found:
        known = [(order.index(ladder.value(v)), one) for v in ladder.rungs if (one := _value(v, figure)) is not None]
        if len(known) >= 2:
            series.append(series_of(_rest(ladder), known))
    if not series:
        return None
    name = NAMES[key]
    return Picture(
        name=f"{figure}_by_{name.replace(' ', '_')}",
        title=f"{words[0].upper()}{words[1:]}, by {name}",
        alt=f"{words} for each {name}: {', '.join(shown for _, shown in rungs)}.",
        x_label=name,
        y_label=words,
        series=tuple(series),
        note=INTERVAL,
        x_names=tuple(shown for _, shown in rungs),
    )


def _rest(ladder: Ladder) -> str:
    """What the rungs of a ladder have in common, by their labels."""
    parts = [label.split(", ") for label in (variant.label for variant in ladder.rungs)]
    common = [part for part in parts[0] if all(part in others for others in parts)]
    return ", ".join(common) or "Switch"


def _loss_by_balance(study: Study) -> Picture | None:
    """What a balance loss buys and costs, one point for each alpha."""
    series = []
    for ladder in ladders(study.variants, ALPHA):
        known = [(v, v.mean("load_max_over_mean"), v.estimate(LOSS)) for v in ladder.rungs]
        places = [(v, balance, loss) for v, balance, loss in known if balance is not None and loss is not None]
        if len(places) >= 2:
            labels = [f"alpha {ladder.shown(v)}" for v, _, _ in places]
            series.append(series_of(_rest(ladder), [(balance, loss) for _, balance, loss in places], labels=labels))
    if not series:
        return None
    return Picture(
        name="loss_by_balance",
        title="Loss against balance, by alpha",
        alt="Dropless loss at the last step against the busiest expert's load over the mean, a point for each alpha.",
        x_label="busiest expert / mean",
        y_label="dropless loss (nats)",
        series=tuple(series),
        note=f"Joined in the order of alpha. {INTERVAL}",
    )


def _loss_by_experts(study: Study) -> Picture | None:
    series = []
    for ladder in ladders(study.variants, EXPERTS):
        known = [(ladder.value(v), one) for v in ladder.rungs if (one := v.estimate(LOSS)) is not None]
        series.append(series_of(_rest(ladder), known))
    if not series:
        return None
    return Picture(
        name="loss_by_experts",
        title="Loss by number of experts",
        alt="Dropless loss at the last step against the number of experts, at equal computation but for the router.",
        x_label="experts in a layer",
        y_label="dropless loss (nats)",
        series=tuple(series),
        x_log=True,
        note=INTERVAL,
    )
