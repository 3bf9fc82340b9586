"""The tables on the page of an inspection."""

from __future__ import annotations

from collections.abc import Sequence

from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.study import Inspection
from switch_lm.pages.document import Cell, Table
from switch_lm.pages.expert_maps import layer_name
from switch_lm.stats.intervals import Estimate


def explained_table(inspections: Sequence[Inspection]) -> Table:
    """Labels down, layers across; beside each share what chance explains."""
    num_layers = max(len(one.atlas.explained) for one in inspections)
    rows = []
    for one in inspections:
        for of_label in zip(*one.atlas.explained, strict=True):
            cells = [Cell(f"{x.share:.1%} ({x.chance:.1%})", x.share) for x in of_label]
            beyond = f", beyond the {of_label[0].given}" if of_label[0].given else ""
            first = _named(inspections, one, of_label[0].label + beyond)
            rows.append((first, *cells, *[Cell("-")] * (num_layers - len(cells))))
    return Table(
        "How much of the choice of expert a label explains",
        ("label", *(layer_name(n) for n in range(num_layers))),
        tuple(rows),
        "The share of the choice's entropy: 0 % nothing, 100 % the label determines the expert. In brackets by chance: "
        "the same label shifted along the text, mean of 100 shifts.",
    )


def router_table(inspections: Sequence[Inspection]) -> Table:
    rows = [
        (
            _named(inspections, one, f"{layer_name(number)}, {judged.gate}"),
            Cell(f"{judged.best.mean:.1%} ({judged.chance:.1%})", judged.best.mean),
            Cell(f"{judged.rank.mean:.2f}", judged.rank.mean),
            _nats(judged.chosen_gains_on_random),
            _nats(judged.best_gains),
        )
        for one in inspections
        for number, pair in enumerate(zip(one.counterfactual.held, one.counterfactual.own, strict=True))
        for judged in pair
    ]
    return Table(
        "The chosen expert against all others in its place",
        (
            "layer, and what multiplies every expert",
            "was the best",
            "mean rank",
            "gains on a random one",
            "the best gains on it",
        ),
        tuple(rows),
        "In brackets by chance. Nats of the token's next character, with 95 % intervals. The best one is known in "
        "hindsight only.",
    )


def expert_table(inspections: Sequence[Inspection]) -> Table:
    rows = []
    for one in inspections:
        for number, layer in enumerate(one.ablation.layers):
            worst = max(range(len(layer.off)), key=lambda e: layer.off[e].mean)
            swapped, similar = [cost.mean for cost in layer.swapped.values()], layer.similarity.between
            rows.append(
                (
                    _named(inspections, one, layer_name(number)),
                    Cell(f"expert {worst}: {layer.off[worst].mean:+.4f}", layer.off[worst].mean),
                    Cell(f"{sum(swapped) / len(swapped):+.4f}") if swapped else Cell("-"),
                    _nats(layer.averaged),
                    Cell(f"{layer.all_off.mean:+.4f}", layer.all_off.mean),
                    Cell("-" if similar is None else f"{similar:.2f} ({layer.similarity.chance:.2f})", similar),
                )
            )
    return Table(
        "What changing the experts does to the loss",
        ("layer", "the costliest one off", "two swapped (mean)", "all averaged into one", "the layer off", "cosine"),
        tuple(rows),
        f"Nats per character on {WINDOWS} windows, the router as it is. Averaged: all give the mean of their outputs. "
        "Cosine of two experts' outputs for one token, in brackets for two unrelated ones.",
    )


def _named(inspections: Sequence[Inspection], one: Inspection, name: str) -> Cell:
    """With the model's name in front if there are several."""
    return Cell(name if len(inspections) == 1 else f"{one.name}: {name}")


def _nats(estimate: Estimate) -> Cell:
    interval = "" if estimate.low is None else f" ({estimate.low:+.4f} to {estimate.high:+.4f})"
    return Cell(f"{estimate.mean:+.4f}{interval}", estimate.mean)
