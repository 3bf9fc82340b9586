"""The tables of an inspection, of one model or of two beside each other."""

from collections.abc import Iterable, Sequence

from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.experts_per_token import DIFFICULTY
from switch_lm.inspection.study import Inspection
from switch_lm.pages.document import Cell, Part, Table, Text
from switch_lm.pages.expert_maps import layer_name
from switch_lm.pages.side_by_side import NONE, side_by_side
from switch_lm.stats.clusters import plus_minus
from switch_lm.stats.information import SHIFTS
from switch_lm.stats.intervals import Estimate
from switch_lm.text.classes import CHARACTER

CHARACTERS_SHOWN, TOO_WIDE = 20, 0.2  # of a model, the most frequent; half of an interval that says nothing


def layers(inspections: Sequence[Inspection]) -> Table:
    """The answers to the questions of the page in five figures."""
    headings = ["the character explains", "dropped", "gain over random routing", "cost of averaging the experts"]
    note = (
        "Explained: a share of the choice of expert, beyond chance. Dropped: at training's capacity, in batches of "
        "windows from all over the text; `evaluate` fills a batch with neighbours, whose loads are less even. Gain and "
        "cost are in nats. * as in the sections below."
    )
    if with_history := any(one.history is not None and len(one.history.steps) > 1 for one in inspections):
        headings.append("specialised at")
        note += " Specialised: when the character explains as much as in the end."
    rows = [[_layer(one, layer)[: 6 if with_history else 5] for layer in range(len(one.blocks))] for one in inspections]
    caption = f"{'Five' if with_history else 'Four'} figures for each layer"
    return side_by_side(caption, ("layer", *headings), rows, note)


def _layer(one: Inspection, layer: int) -> tuple[Cell, ...]:
    drops, history = one.drops, one.history
    at = None if history is None or len(history.steps) == 1 else history.specialised_at(layer)
    return (
        Cell(layer_name(one.blocks[layer])),
        estimate(one.atlas.explained[layer][0].beyond, one.atlas.comparisons, ".1%"),
        NONE if drops is None else Cell(plus_minus(share := drops.mean(layer), ".1%").split(" (")[0], share.mean),
        estimate(one.counterfactual.held[layer].chosen_gains_on_random, one.counterfactual.comparisons),
        estimate(one.ablation.layers[layer].averaged, one.ablation.comparisons),
        NONE if at is None else Cell(f"step {at:,}", at),
    )


def explained(inspections: Sequence[Inspection]) -> Table:
    """Labels down, the layers of all models across; beside each share what chance explains."""
    note = (
        "The share of the choice's entropy less what chance explains. In brackets, chance: the same label shifted "
        f"along the text, mean of {SHIFTS} shifts. {_stars(one.atlas.comparisons for one in inspections)}"
    )
    blocks, rows = _blocks(inspections), []
    for one in inspections:
        of_one = []
        for of_label in zip(*one.atlas.explained, strict=True):
            cells = (estimate(x.beyond, one.atlas.comparisons, ".1%", f" ({x.chance:.1%})") for x in of_label)
            by_block = dict(zip(one.blocks, cells, strict=True))
            beyond = f", beyond the {of_label[0].given}" if of_label[0].given else ""
            of_one.append((Cell(of_label[0].label + beyond), *(by_block.get(block, NONE) for block in blocks)))
        rows.append(of_one)
    headings = "label", *map(layer_name, blocks)
    return side_by_side("How much of the choice of expert a label explains", headings, rows, note)


def numbers(inspections: Sequence[Inspection]) -> list[Part]:
    """By character and by difficulty; none if in every model each token has as many experts."""
    names = {CHARACTER: f"character (the {CHARACTERS_SHOWN} most frequent)", DIFFICULTY: "fifth by loss, 0 the easiest"}
    blocks, result = _blocks(inspections), list[Part]()
    for by, first in names.items() if any(one.per_token for one in inspections) else ():
        rows = []
        for one in inspections:
            of_one = []
            for group in [x for x in one.per_token or () if x.by == by][:CHARACTERS_SHOWN]:
                cells = (
                    Cell(estimate(x, 1, ".2f").text.rstrip(" *") + f" ({without:.1%})", x.mean)
                    for x, without in group.layers
                )
                by_block = dict(zip(one.blocks, cells, strict=True))
                tokens = Cell(f"{group.count:,}", group.count)
                of_one.append((Cell(group.value), tokens, *(by_block.get(block, NONE) for block in blocks)))
            rows.append(of_one)
        headings = first, "tokens", *map(layer_name, blocks)
        result.append(side_by_side(f"Experts per token by {by}", headings, rows, "In brackets: the share without one."))
    return result


def drops(inspections: Sequence[Inspection]) -> list[Part]:
    """Who is dropped and what it costs, or for each model that nothing is."""
    result, rows, counts = list[Part](), [], []
    for one in inspections:
        of, dropped, of_one = one.letter, one.drops, list[tuple[Cell, ...]]()
        if dropped is None:
            result.append(Text(f"{of}It was trained without a capacity: nothing is dropped."))
        elif dropped.cost is None:
            result.append(Text(f"{of}No token was dropped at capacity factor {dropped.capacity_factor:g}."))
        else:
            number = dropped.comparisons
            for name, x in dropped.compared.items():
                form = "+.4f" if x is dropped.cost else "+.2%"
                of_one.append((Cell(name), estimate(x, number, form) if x else NONE))
            for block, label in zip(one.blocks, dropped.character, strict=True):
                cell = estimate(label.beyond, number, ".1%", f" ({label.chance:.1%})")
                cell = Cell("too few drops") if (label.beyond.half() or 0.0) > TOO_WIDE else cell
                of_one.append((Cell(f"{layer_name(block)}: the character explains who is dropped"), cell))
            share, chance = sum(dropped.at_once[2:]), sum(dropped.at_once_by_chance[2:])
            of_one.append((Cell("dropped in several layers"), Cell(f"{share:.2%} ({chance:.2%})", share)))
            counts.append(number)
        rows.append(of_one)
    note = (
        "Shares of tokens, and nats of a dropped token; a rare batch can cost many times as much as others, so that "
        f"the interval of what drops cost may be too short. In brackets: by chance. {_stars(counts)}"
    )
    table = side_by_side("Who is dropped, and what it costs", ("compared", "figure"), rows, note)
    return [*result, table] if counts else result


def router(inspections: Sequence[Inspection]) -> Table:
    """Each layer's router against all experts that it could have chosen."""
    gains = "gain over a random expert", "best expert's lead over the chosen one"
    headings = ("layer, every expert with", "was the best", "mean rank", *gains)
    note = (
        "In brackets: by chance. Gains are nats of the token's next character. The best is known in hindsight only. "
        "A token without an expert is not judged. " + _stars(one.counterfactual.comparisons for one in inspections)
    )
    rows = [
        [
            (
                Cell(f"{layer_name(number)}, {judged.gate}"),
                Cell(f"{plus_minus(judged.best, '.1%')} ({judged.chance:.1%})", judged.best.mean),
                Cell(plus_minus(judged.rank, ".2f"), judged.rank.mean),
                estimate(judged.chosen_gains_on_random, one.counterfactual.comparisons),
                Cell(plus_minus(judged.best_gains, "+.4f"), judged.best_gains.mean),
            )
            for number, *pair in zip(one.blocks, one.counterfactual.held, one.counterfactual.own, strict=True)
            for judged in pair
            if judged.without < 1.0
        ]
        for one in inspections
    ]
    return side_by_side("The chosen expert against all others in its place", headings, rows, note)


def experts(inspections: Sequence[Inspection]) -> Table:
    """What each change of a layer's experts does to the loss."""
    headings = "most important expert switched off", "two swapped (mean)", "averaged", "layer switched off", "cosine"
    note = (
        f"Nats per character on {WINDOWS} windows, the router as it is. The most important is chosen on half of them "
        "and estimated on the others: its card differs a little. Averaged: all give their mean. Cosine of two outputs "
        f"for one token, in brackets for two unrelated ones. {_stars(one.ablation.comparisons for one in inspections)}"
    )
    rows = []
    for one in inspections:
        of_one, number = [], one.ablation.comparisons
        for block, layer in zip(one.blocks, one.ablation.layers, strict=True):
            alike, most = layer.similarity, layer.costliest
            of_one.append((
                Cell(layer_name(block)),
                estimate(most.cost, number, before=f"expert {most.expert}: ") if most else NONE,
                *(estimate(x, number) if x else NONE for x in (layer.any_swapped, layer.averaged, layer.all_off)),
                NONE if alike.between is None else Cell(f"{alike.between:.2f} ({alike.chance:.2f})", alike.between),
            ))  # fmt: skip
        rows.append(of_one)
    return side_by_side("What changing the experts does to the loss", ("layer", *headings), rows, note)


def history(inspections: Sequence[Inspection]) -> list[Part]:
    """What there is to say of checkpoints that could not be read, or of a single one."""
    result: list[Part] = [Text(f"{one.name}: {warning}") for one in inspections for warning in one.warnings]
    several = any(one.history and one.history.since_before for one in inspections)
    how = "`trainer.keep_best=6` keeps those that show when the experts specialised"
    return [*result, *([] if several else [Text(f"A single checkpoint shows no history: {how}.")])]


def _blocks(inspections: Sequence[Inspection]) -> list[int]:
    return sorted({block for one in inspections for block in one.blocks})


def estimate(x: Estimate, comparisons: int, form: str = "+.4f", after: str = "", before: str = "") -> Cell:
    """With ± if it has an interval, and a star if that excludes 0, corrected for so many comparisons."""
    text = f"{x.mean:{form}}" if x.error is None else plus_minus(x, form)
    return Cell(f"{before}{text}{' *' * x.resolved(comparisons)}{after}", x.mean)


def _stars(counts: Iterable[int]) -> str:
    """What ± and * mean in a table, and for how many intervals of each model they are corrected."""
    number = " and ".join(map(str, dict.fromkeys(counts)))
    return f"± is half of the 95% interval, if any; * differs from 0, corrected for all {number} comparisons here."
