"""The numbers of an inspection: as tables of a page, and as rows for files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.study import Inspection
from switch_lm.pages.document import Cell, Table
from switch_lm.pages.expert_maps import layer_name, visible
from switch_lm.stats.intervals import Estimate

Row = dict[str, object]


def explained_table(found: Sequence[Inspection]) -> Table:
    """Labels down, layers across; beside each share what chance explains."""
    num_layers = max(len(one.atlas.explained) for one in found)
    rows = []
    for one in found:
        for label, of_label in zip(one.labels, zip(*one.atlas.explained, strict=True), strict=True):
            cells = [Cell(f"{_percent(x.share)} ({_percent(x.chance)})", x.share) for x in of_label]
            given = of_label[0].given
            name = label.name + (f", beyond the {given}" if given else "")
            rows.append((_named(found, one, name), *cells, *[Cell("-")] * (num_layers - len(cells))))
    return Table(
        "How much of the choice of expert a label explains",
        ("label", *(layer_name(n) for n in range(num_layers))),
        tuple(rows),
        "The share of the choice's entropy: 0 % nothing, 100 % the label determines the expert. In brackets by chance: "
        "the same label shifted along the text, mean of 100 shifts.",
    )


def _named(found: Sequence[Inspection], one: Inspection, name: str) -> Cell:
    """With the model's name in front where there are several."""
    return Cell(name if len(found) == 1 else f"{one.name}: {name}")


def _percent(share: float) -> str:
    return f"{share:.1%}"


def router_table(found: Sequence[Inspection]) -> Table:
    rows = [
        (
            _named(found, one, f"{layer_name(number)}, {judged.gate}"),
            Cell(f"{_percent(judged.best.mean)} ({_percent(judged.chance)})", judged.best.mean),
            Cell(f"{judged.rank.mean:.2f}", judged.rank.mean),
            _nats(judged.chosen_gains_on_random),
            _nats(judged.best_gains),
        )
        for one in found
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


def expert_table(found: Sequence[Inspection]) -> Table:
    rows = []
    for one in found:
        for number, layer in enumerate(one.ablation.layers):
            costliest = max(range(len(layer.off)), key=lambda e: layer.off[e].mean)
            swapped, similar = [cost.mean for cost in layer.swapped.values()], layer.similarity.between
            rows.append(
                (
                    _named(found, one, layer_name(number)),
                    Cell(f"expert {costliest}: {layer.off[costliest].mean:+.4f}", layer.off[costliest].mean),
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


def _text(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.4f}"
    return f"{estimate.mean:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"


def _nats(estimate: Estimate) -> Cell:
    return Cell(_text(estimate), estimate.mean)


def files(found: Inspection) -> dict[str, list[Row]]:
    """Rows by the name of a CSV file."""
    rows: dict[str, list[Row]] = {
        "atlas": list(_atlas(found)),
        "explained": [
            {"layer": n, "label": one.label, "given": one.given, "share": one.share, "chance": one.chance,
             "chance_95": one.chance_high}
            for n, layer in enumerate(found.atlas.explained)
            for one in layer
        ],
        "router": list(_router(found)),
        "experts": list(_experts(found)),
    }  # fmt: skip
    if found.drops is not None:
        rows["drops"] = list(_drops(found))
    if found.history is not None:
        rows["history"] = list(_history(found))
    return rows


def _atlas(found: Inspection) -> Iterator[Row]:
    for layer, count_VE in enumerate(found.atlas.count_LVE.tolist()):
        for character, counts in zip(found.vocabulary.characters, count_VE, strict=True):
            for expert, count in enumerate(counts):
                yield {"layer": layer, "character": visible(character), "expert": expert, "count": count}


def _drops(found: Inspection) -> Iterator[Row]:
    drops = found.drops
    assert drops is not None
    by = {
        "character": ([visible(c) for c in found.vocabulary.characters], drops.by_character_LV),
        "position": (range(drops.by_position_LS.shape[1]), drops.by_position_LS),
        "row": (range(drops.by_row_LR.shape[1]), drops.by_row_LR),
        "difficulty": (range(drops.by_difficulty_LQ.shape[1]), drops.by_difficulty_LQ),
    }
    for what, (names, share_LN) in by.items():
        for layer, shares in enumerate(share_LN.tolist()):
            for name, share in zip(names, shares, strict=True):
                if share == share:
                    yield {"layer": layer, "by": what, "value": name, "share_dropped": share}


def _router(found: Inspection) -> Iterator[Row]:
    for layer, pair in enumerate(zip(found.counterfactual.held, found.counterfactual.own, strict=True)):
        for one in pair:
            gain = one.chosen_gains_on_random
            yield {
                "layer": layer, "gate": one.gate, "best": one.best.mean, "best_by_chance": one.chance,
                "mean_rank": one.rank.mean, "gain_on_random": gain.mean, "low": gain.low, "high": gain.high,
                "best_gains": one.best_gains.mean,
            }  # fmt: skip


def _experts(found: Inspection) -> Iterator[Row]:
    for layer, one in enumerate(found.ablation.layers):
        changes = {f"without {e}": cost for e, cost in enumerate(one.off)}
        changes |= {f"{i} and {j} swapped": cost for (i, j), cost in one.swapped.items()}
        for change, cost in (changes | {"all averaged": one.averaged, "layer off": one.all_off}).items():
            yield {"layer": layer, "change": change, "nats": cost.mean, "low": cost.low, "high": cost.high}
        for i, cosines in enumerate(one.similarity.same_EE.tolist()):
            for j in range(i):
                yield {
                    "layer": layer,
                    "change": f"cosine of {j} and {i}",
                    "nats": cosines[j],
                    "low": None,
                    "high": None,
                }


def _history(found: Inspection) -> Iterator[Row]:
    history = found.history
    assert history is not None
    for n, step in enumerate(history.steps):
        for layer, explained in enumerate(history.character[n]):
            since = history.since_before[n - 1][layer].share if n else None
            yield {
                "step": step, "loss": history.loss[n], "layer": layer, "character_explains": explained.share,
                "chance": explained.chance, "changed_since_before": since,
                "differs_from_last": history.to_last[n][layer].share,
            }  # fmt: skip
