"""What the page of an inspection says about one model, or about two side by side."""

import shlex
from collections.abc import Mapping, Sequence

from switch_lm.inspection import pictures, pruned, tables
from switch_lm.inspection.ablation import WINDOWS, costs
from switch_lm.inspection.cards import ExpertCard
from switch_lm.inspection.matching import Pair, matched
from switch_lm.inspection.study import Inspection
from switch_lm.pages.document import Bullets, Cell, Code, Document, Part, Section, Table, Text
from switch_lm.pages.expert_cards import Card, ExpertCards, percent
from switch_lm.pages.expert_maps import layer_name
from switch_lm.pages.side_by_side import NONE
from switch_lm.stats.shares import TIMES
from switch_lm.text.classes import WRITTEN

CLASSES_SHOWN = 6  # on a card


def build(inspections: Sequence[Inspection], *, command: str) -> Document:
    """Tables have a column for each of two models and one for their difference; maps stand beside each other."""
    matches = matched(*inspections) if len(inspections) == 2 else {}
    parts: dict[str, list[Part]] = {
        "The experts": [_who_gets_what(inspections), _cards(inspections, matches)],
        "The layers": [tables.layers(inspections)],
        "What explains the choice of expert?": [
            tables.explained(inspections),
            *(pictures.coloured(one, key) for key, one in enumerate(inspections)),
            *pictures.atlases(inspections, matches),
        ],
        "How many experts does a token get?": tables.numbers(inspections),
        "Who is dropped?": [*tables.drops(inspections), *pictures.dropped_pictures(inspections)],
        "Was the router right?": [tables.router(inspections), pictures.router_picture(inspections)],
        "Are the experts different?": [tables.experts(inspections), *pictures.expert_maps(inspections)],
        "Can experts be removed?": pruned.parts(inspections),
        "When did they specialise?": [*tables.history(inspections), *pictures.history_pictures(inspections)],
        "What to do next": _next(inspections),
        "How it was measured": _how(inspections, command),
    }
    sections = [Section(heading, tuple(of_section)) for heading, of_section in parts.items() if of_section]
    names = " and ".join(f"`{one.name}`{_in_brackets(one)}" for one in inspections)
    return Document(f"What the experts of {names} do", " ".join(map(_summary, inspections)), tuple(sections))


def in_words(inspections: Sequence[Inspection]) -> str:
    """The lines of the cards and the table of the layers, as text."""
    comparisons, result = _comparisons(inspections), list[str]()
    for one in inspections:
        result += ["", one.name, "", *(f"{x.name}: {x.line(comparisons)}" for x in sum(one.cards.layers, ())), ""]
        table = tables.layers([one])
        for row in table.rows:
            named = zip(table.headings[1:], row[1:], strict=True)
            figures = (f"{heading} {cell.text}" for heading, cell in named if cell != NONE)
            result.append(f"{row[0].text}: {'; '.join(figures)}")
    return "\n".join(result[1:])


def _summary(one: Inspection) -> str:
    """The main figures, from the lowest to the highest of a model's layers."""
    if one.text.num_experts == 1 and one.per_token is None:
        return f"`{one.name}` has a single expert: there is nothing to judge."
    layers = len(one.blocks)
    known = [x.beyond.mean for x, *_ in one.atlas.explained if x.beyond_chance(one.atlas.comparisons)]
    predicts = f"predicts {_range(known, '.0%')} of" if known else "predicts"
    gains = [judged.chosen_gains_on_random for judged in one.counterfactual.held]
    better = [gain.mean for gain in gains if gain.mean > 0 and gain.resolved(one.counterfactual.comparisons)]
    by = f", by {_range(better, '.2f')} nats" if better else ""
    worth = sum(costs(layer.averaged, one.ablation.comparisons) for layer in one.ablation.layers)
    shares = [one.drops.mean(layer).mean for layer in range(layers)] if one.drops else []
    dropped = f"{_range(shares, '.1%')} of a layer's tokens are" if shares else "nothing is"
    trained = "" if one.training_dropped is None else f" (training itself dropped {one.training_dropped:.1%} of all)"
    of = [f"{'all' if n == layers > 1 else f'{n} of'} {layers} layers" for n in (len(better), worth, len(known))]
    return (
        f"The loss of `{one.name}` is {one.ablation.loss:.3f} nats on {WINDOWS} windows. Its routing beats random "
        f"routing in {of[0]}{by}; replacing a layer's experts by their average raises the loss in {of[1]}; the current "
        f"character alone {predicts} the choice of expert in {of[2]}, beyond chance; {dropped} dropped{trained}."
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


# --- Experts


def _comparisons(inspections: Sequence[Inspection]) -> int:
    """How many classes are compared on the page: what is named is corrected for all."""
    return sum(one.cards.comparisons for one in inspections)


def _who_gets_what(inspections: Sequence[Inspection]) -> Table:
    """Classes down, the layers across; in each cell the experts at which the class stands out."""
    comparisons, layers, rows = _comparisons(inspections), dict[str, tuple[ExpertCard, ...]](), []
    for one in inspections:
        for block, cards in zip(one.blocks, one.cards.layers, strict=True):
            layers[f"{one.letter}{layer_name(block)}"] = cards
    for name in sorted(WRITTEN, key=lambda name: name != "before a capital"):
        experts = [
            sorted((-x.taken, card.expert) for card in cards for x in card.named(comparisons) if x.name == name)
            for cards in layers.values()
        ]
        if any(experts):
            texts = (", ".join(f"{expert} ({-taken:.0%})" for taken, expert in of_layer) for of_layer in experts)
            rows.append((Cell(name), *(Cell(text or "-") for text in texts)))
    return Table(
        "Which expert gets which characters",
        ("characters", *layers),
        tuple(rows),
        "An expert is named where the class stands out among its characters; in brackets its share of the class. "
        "“Before a capital” are the characters after which a capital follows: there the model has to write one.",
    )


def _cards(inspections: Sequence[Inspection], matches: Mapping[int, list[Pair]]) -> ExpertCards:
    comparisons = _comparisons(inspections)
    caption = (
        f"A class is named if it is more than {TIMES:g} times as common among the expert's characters as in the text, "
        f"by the lower end of an interval corrected for all {comparisons:,} comparisons of this page. In "
        "brackets: the share of the text, which an expert chosen at random has. Load: its share of the text. Dropped: "
        "the share of its characters that training's capacity would drop here. Without it: the increase in loss when "
        "the expert is switched off."
    )
    rows: dict[int, list[tuple[Card, ...]]] = {
        block: [_beside(inspections, pair, comparisons) for pair in pairs] for block, pairs in matches.items()
    }
    if rows:
        shared = any(share is not None for pairs in matches.values() for _, _, share in pairs)
        how = "the characters that both models send them" if shared else "their numbers, since the texts differ"
        caption += f" Experts are matched by {how}."
    else:
        for block, cards in zip(inspections[0].blocks, inspections[0].cards.layers, strict=True):
            rows[block] = [(_card(inspections[0], card, comparisons),) for card in cards]
    return ExpertCards(caption, tuple((layer_name(block), tuple(of_layer)) for block, of_layer in rows.items()))


def _figures(one: Inspection, card: ExpertCard) -> dict[str, tuple[str, float | None]]:
    """Load, drops and the cost of switching it off, as text and as numbers."""
    layer = list(one.blocks).index(card.block)
    dropped = None if one.drops is None else one.drops.by_expert_LE[layer, card.expert].nan_to_num(0.0).item()
    changed = one.ablation.layers[layer]
    cost = dict(zip(changed.similarity.experts, changed.off, strict=True)).get(card.expert)
    cell = tables.estimate(cost, one.ablation.comparisons, "+.3f") if cost else Cell("-")
    return {
        "load": (percent(card.load), card.load),
        "dropped": ("dropless" if dropped is None else percent(dropped), dropped),
        "without it, nats": (cell.text, cell.sort),
    }


def _card(one: Inspection, card: ExpertCard, comparisons: int) -> Card:
    named = card.named(comparisons)[:CLASSES_SHOWN]
    common = {"Classes": [(x.name, x.share, x.in_text) for x in named]}
    common |= {"Characters": list(card.characters), "Bigrams": list(card.bigrams)}
    return Card(
        f"{one.letter}{card.name}",
        card.line(comparisons),
        tuple((name, text) for name, (text, _) in _figures(one, card).items()),
        tuple((k, tuple((w, percent(a), percent(b)) for w, a, b in x)) for k, x in common.items() if x),
        tuple((f"{how} gate, {gate:.2f}", *text) for how, gate, text in card.contexts),
        card.expert,
    )


def _beside(inspections: Sequence[Inspection], pair: Pair, comparisons: int) -> tuple[Card, ...]:
    """The two of a pair and their difference."""
    cards, figures, facts = [], [], []
    for one, card in zip(inspections, pair[:2], strict=True):
        figures.append(_figures(one, card) if card else {})
        cards.append(_card(one, card, comparisons) if card else Card(one.letter, "no expert matches", ()))
    for name, form in (("load", "+.1%"), ("dropped", "+.1%"), ("without it, nats", "+.3f")):
        a, b = (of_one.get(name, ("", None))[1] for of_one in figures)
        facts.append((name, "-" if a is None or b is None else f"{b - a:{form}}"))
    if pair[1] and pair[2] is not None:
        facts.append(("same characters", f"{percent(pair[2])} of A's (chance {percent(pair[1].load)})"))
    return (*cards, Card("B less A", "the difference", tuple(facts)))


def _next(inspections: Sequence[Inspection]) -> list[Part]:
    """Commands that can be pasted, from what was found in the first model."""
    one, run = inspections[0], shlex.quote(str(inspections[0].checkpoint))
    steps = [
        ("Does its routing see the future, and can its numbers be trusted?", f"check --run {run}"),
        ("Generate text, each character in the colour of its expert:", f"generate --run {run} --html sample.html"),
    ]
    if one.drops is not None:
        capacities = f"evaluate --run {run} --capacity-factor 0.5 1 2 none"
        steps.insert(0, ("What does a capacity cost? The loss at several factors:", capacities))
    return [part for words, command in steps for part in (Text(words), Code(f"python -m switch_lm.{command}"))]


def _how(inspections: Sequence[Inspection], command: str) -> list[Part]:
    (B, S), judged = inspections[0].probe.ids_BS.shape, inspections[0].counterfactual
    drops = ", ".join(f"{len(one.drops.dropped_LBS[0])} of them, each {one.drops.unit} a unit,"
                      for one in inspections if one.drops)  # fmt: skip
    tried = f", on 64 random ones of {judged.drawn_from:,} experts" if judged.drawn_from else ""
    return [
        Text(
            f"On {B} windows of {S} characters, spread evenly over the validation split. Nothing is dropped unless "
            "stated. An expert's characters are those that it reads; where one stands for all, it is the one with the "
            "largest gate. ± is half of the 95% interval. Windows are the units: they were sampled independently, "
            "characters were not. Claims are corrected for all comparisons of their section: in 19 of 20 "
            "such sections every claim holds. The "
            f"router is judged on {judged.num_tokens:,} characters per layer{tried}, the experts on {WINDOWS} windows"
            f"{', drops on ' * bool(drops)}{drops.rstrip(',')}."
        ),
        Bullets(tuple(f"`{one.name}`{_in_brackets(one)}: {one.checkpoint}" for one in inspections)),
        Code(command),
    ]


def _in_brackets(one: Inspection) -> str:
    return f" ({one.letter[0]})" if one.letter else ""
