"""What the page of an inspection says about one model, or about two side by side."""

from collections.abc import Callable, Sequence

from switch_lm.inspection import pictures
from switch_lm.inspection.ablation import WINDOWS, Ablation, Costliest, costs
from switch_lm.inspection.atlas import CHARACTER, Atlas
from switch_lm.inspection.counterfactual import Counterfactual
from switch_lm.inspection.experts_per_token import DIFFICULTY
from switch_lm.inspection.study import ATLAS, DROPS, EXPERTS, NUMBER, ROUTER, TIME, Inspection
from switch_lm.pages.document import Bullets, Cell, Code, Document, Part, Section, Table, Text
from switch_lm.pages.expert_maps import layer_name
from switch_lm.stats.clusters import plus_minus
from switch_lm.stats.information import SHIFTS
from switch_lm.stats.intervals import Estimate

CHARACTERS_SHOWN = 20  # of a model, the most frequent
NUMBER_TABLES = {
    CHARACTER: f"character (the {CHARACTERS_SHOWN} most frequent)",
    DIFFICULTY: "fifth by loss, 0 the easiest",
}


def build(inspections: Sequence[Inspection], *, command: str) -> Document:
    """Tables hold all models; texts and pictures follow one another, model by model."""
    parts: dict[str, list[Part]] = {
        ATLAS: [_explained_table(inspections)],
        NUMBER: [*_number_tables(inspections)],
        DROPS: [],
        ROUTER: [_router_table(inspections)],
        EXPERTS: [_expert_table(inspections)],
        TIME: [],
    }
    for number, one in enumerate(inspections):
        key = str(number)
        for heading, sentences in one.findings().items():
            if len(inspections) > 1:
                parts[heading].append(Text(f"`{one.name}`:"))
            parts[heading].append(Bullets(tuple(sentences)))
        parts[ATLAS].append(pictures.coloured(one, key))
        parts[ATLAS] += pictures.atlases(one, key)
        parts[DROPS] += pictures.dropped_pictures(one, key)
        parts[ROUTER].append(pictures.router_picture(one, key))
        parts[EXPERTS] += pictures.expert_maps(one, key)
        parts[TIME] += pictures.history_pictures(one, key)
    sections = [Section(heading, tuple(of_section)) for heading, of_section in parts.items() if of_section]
    names = " and ".join(f"`{one.name}`" for one in inspections)
    lead = " ".join(_summary(one) for one in inspections)
    return Document(f"What the experts of {names} do", lead, (*sections, _how(inspections, command)))


def _summary(one: Inspection) -> str:
    """The main figures, from the lowest to the highest of a model's layers."""
    if one.text.num_experts == 1 and one.per_token is None:
        return f"`{one.name}` has a single expert: there is nothing to judge."
    layers = len(one.blocks)
    character = [layer[0] for layer in one.atlas.explained]
    known = [x.beyond.mean for x in character if x.beyond_chance(one.atlas.comparisons)]
    share = f", by {_range(known, '.1%')} of its entropy" if known else ""
    gains = [judged.chosen_gains_on_random for judged in one.counterfactual.held]
    better = [gain.mean for gain in gains if gain.mean > 0 and gain.resolved(one.counterfactual.comparisons)]
    by = f", by {_range(better, '.2f')} nats" if better else ""
    worth = sum(costs(layer.averaged, one.ablation.comparisons) for layer in one.ablation.layers)
    return (
        f"In `{one.name}` the character itself explains the choice of expert beyond chance in {len(known)} of {layers} "
        f"layers{share}; the router beats a random one in {len(better)} of {layers}{by}; and its experts are worth "
        f"more than their mean in {worth} of {layers}."
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _how(inspections: Sequence[Inspection], command: str) -> Section:
    B, S = inspections[0].probe.ids_BS.shape
    judged = inspections[0].counterfactual.num_tokens
    checkpoints = tuple(f"`{one.name}`: {one.checkpoint}" for one in inspections)
    return Section(
        "How it was measured",
        (
            Text(
                f"On {B} windows of {S} characters, {B * S:,} in all, spread evenly over the validation split: the "
                "same for every model with this text. Nothing is dropped unless stated. A token's expert is the "
                "one with the largest of its gates. ± is half of a 95 % interval. Windows are the units: they were "
                f"sampled independently, characters were not. {_drops_read(inspections)}What is claimed holds for "
                "intervals that are corrected for all of their section: in 19 sections of 20 none is false. "
                f"The router is judged on {judged:,} of these characters per layer, the experts on {WINDOWS} windows."
            ),
            Bullets(checkpoints),
            Code(command),
        ),
    )


def _drops_read(inspections: Sequence[Inspection]) -> str:
    units = [
        f"of `{one.name}` on {one.drops.dropped_LBS.shape[1]} windows, each {one.drops.unit} a unit"
        for one in inspections
        if one.drops is not None
    ]
    return f"Drops are read {'; '.join(units)}. " if units else ""


def _explained_table(inspections: Sequence[Inspection]) -> Table:
    """Labels down, the layers of all models across; beside each share what chance explains."""
    blocks = sorted({block for one in inspections for block in one.blocks})
    rows = []
    for one in inspections:
        for of_label in zip(*one.atlas.explained, strict=True):
            cells = {
                block: _estimate(x.beyond, one.atlas.comparisons, ".1%", f" ({x.chance:.1%})")
                for block, x in zip(one.blocks, of_label, strict=True)
            }
            beyond = f", beyond the {of_label[0].given}" if of_label[0].given else ""
            first = _named(inspections, one, of_label[0].label + beyond)
            rows.append((first, *(cells.get(block, Cell("-")) for block in blocks)))
    return Table(
        "How much of the choice of expert a label explains",
        ("label", *map(layer_name, blocks)),
        tuple(rows),
        "The share of the choice's entropy less what chance explains. In brackets, chance: the same label shifted "
        f"along the text, mean of {SHIFTS} shifts. {_stars(inspections, lambda one: one.atlas)}",
    )


def _number_tables(inspections: Sequence[Inspection]) -> list[Table]:
    """By character and by difficulty; none if in every model each token has as many experts."""
    known = [(one, one.per_token) for one in inspections if one.per_token is not None]
    blocks = sorted({block for one, _ in known for block in one.blocks})
    result = []
    for by, first in NUMBER_TABLES.items() if known else ():
        rows = []
        for one, per_token in known:
            for group in [group for group in per_token.groups if group.by == by][:CHARACTERS_SHOWN]:
                cells = dict(zip(one.blocks, map(_number, group.layers), strict=True))
                tokens = Cell(f"{group.count:,}", group.count)
                rows.append((_named(inspections, one, group.value), tokens, *(cells.get(b, Cell("-")) for b in blocks)))
        headings, note = (
            (first, "tokens", *map(layer_name, blocks)),
            "In brackets: the share of these tokens that have none.",
        )
        result.append(Table(f"Experts per token by {by}", headings, tuple(rows), note))
    return result


def _number(facts: tuple[Estimate, float]) -> Cell:
    number, without = facts
    text = f"{number.mean:.2f}" if number.error is None else plus_minus(number, ".2f")
    return Cell(f"{text} ({without:.1%})", number.mean)


def _router_table(inspections: Sequence[Inspection]) -> Table:
    rows = [
        (
            _named(inspections, one, f"{layer_name(number)}, {judged.gate}"),
            Cell(f"{plus_minus(judged.best, '.1%')} ({judged.chance:.1%})", judged.best.mean),
            Cell(plus_minus(judged.rank, ".2f"), judged.rank.mean),
            _estimate(judged.chosen_gains_on_random, one.counterfactual.comparisons),
            Cell(plus_minus(judged.best_gains, "+.4f"), judged.best_gains.mean),
        )
        for one in inspections
        for number, *pair in zip(one.blocks, one.counterfactual.held, one.counterfactual.own, strict=True)
        for judged in pair
        if judged.without < 1.0
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
        "In brackets by chance. Gains are nats of the token's next character. The best one is known in hindsight only. "
        + _stars(inspections, lambda one: one.counterfactual),
    )


def _expert_table(inspections: Sequence[Inspection]) -> Table:
    rows = []
    for one in inspections:
        for number, layer in zip(one.blocks, one.ablation.layers, strict=True):
            number_of, similar = one.ablation.comparisons, layer.similarity.between
            rows.append(
                (
                    _named(inspections, one, layer_name(number)),
                    _costliest(layer.costliest, number_of),
                    _estimate(layer.any_swapped, number_of) if layer.any_swapped else Cell("-"),
                    _estimate(layer.averaged, number_of),
                    _estimate(layer.all_off, number_of),
                    Cell("-" if similar is None else f"{similar:.2f} ({layer.similarity.chance:.2f})", similar),
                )
            )
    return Table(
        "What changing the experts does to the loss",
        ("layer", "the costliest one off", "two swapped (mean)", "all averaged into one", "the layer off", "cosine"),
        tuple(rows),
        f"Nats per character on {WINDOWS} windows, the router as it is. The costliest one is chosen on half of them "
        "and estimated on the others. Averaged: all give the mean of their outputs. Cosine of two experts' outputs for "
        "one token, in brackets for two unrelated ones. " + _stars(inspections, lambda one: one.ablation),
    )


def _named(inspections: Sequence[Inspection], one: Inspection, name: str) -> Cell:
    """With the model's name in front if there are several."""
    return Cell(name if len(inspections) == 1 else f"{one.name}: {name}")


def _costliest(costliest: Costliest | None, comparisons: int) -> Cell:
    return _estimate(costliest.cost, comparisons, before=f"expert {costliest.expert}: ") if costliest else Cell("-")


def _estimate(estimate: Estimate, comparisons: int, form: str = "+.4f", after: str = "", before: str = "") -> Cell:
    star = " *" if estimate.resolved(comparisons) else ""
    return Cell(f"{before}{plus_minus(estimate, form)}{star}{after}", estimate.mean)


def _stars(inspections: Sequence[Inspection], part: Callable[[Inspection], Atlas | Counterfactual | Ablation]) -> str:
    """What ± and * mean in a table, and for how many intervals of each model they are corrected."""
    several = len(inspections) > 1
    counts = (f"{part(one).comparisons}{f' of {one.name}' if several else ''}" for one in inspections)
    return f"± is half of a 95 % interval; * differs from 0, corrected for all {' and '.join(counts)} comparisons here."
