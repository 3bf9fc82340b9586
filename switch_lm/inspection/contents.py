"""What the page of an inspection says, of one model or of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

from switch_lm.inspection import pictures
from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.study import ATLAS, DROPS, EXPERTS, ROUTER, TIME, Inspection
from switch_lm.inspection.tables import expert_table, explained_table, router_table
from switch_lm.pages.document import Bullets, Code, Document, Part, Section, Text

MOST_EXPERTS = 64  # that a coloured text tells apart


def build(inspections: Sequence[Inspection], *, command: str) -> Document:
    """Tables hold all models; texts and pictures follow one another, model by model."""
    parts: dict[str, list[Part]] = {
        ATLAS: [explained_table(inspections)],
        DROPS: [],
        ROUTER: [router_table(inspections)],
        EXPERTS: [expert_table(inspections)],
        TIME: [],
    }
    for number, one in enumerate(inspections):
        key = str(number)
        for heading, sentences in one.findings().items():
            if len(inspections) > 1:
                parts[heading].append(Text(f"`{one.name}`:"))
            parts[heading].append(Bullets(tuple(sentences)))
        if one.text.num_experts <= MOST_EXPERTS:
            parts[ATLAS].append(pictures.coloured(one, key))
        else:
            parts[ATLAS].append(Text(f"No coloured text: it tells {MOST_EXPERTS} experts apart, and there are more."))
        parts[ATLAS] += pictures.atlases(one, key)
        parts[DROPS] += pictures.dropped_pictures(one, key)
        parts[ROUTER].append(pictures.router_picture(one, key))
        parts[EXPERTS] += pictures.expert_maps(one, key)
        parts[TIME] += pictures.history_pictures(one, key)
    sections = [Section(heading, tuple(of_section)) for heading, of_section in parts.items()]
    names = " and ".join(f"`{one.name}`" for one in inspections)
    lead = " ".join(_summary(one) for one in inspections)
    return Document(f"What the experts of {names} do", lead, (*sections, _how(inspections, command)))


def _summary(one: Inspection) -> str:
    """The main figures, from the lowest to the highest of a model's layers."""
    character = [layer[0].share for layer in one.atlas.explained]
    chance = max(layer[0].chance for layer in one.atlas.explained)
    explained = f"{character[0]:.0%}" if len(character) == 1 else f"{min(character):.0%} to {max(character):.0%}"
    gains = [judged.chosen_gains_on_random for judged in one.counterfactual.held]
    better = [gain.mean for gain in gains if gain.resolved and gain.mean > 0]
    by = f", by {min(better):.2f} to {max(better):.2f} nats" if better else ""
    costs = [layer.averaged for layer in one.ablation.layers]
    worth = sum(cost.resolved and cost.mean > 0 for cost in costs)
    return (
        f"In `{one.name}` the character itself explains {explained} of the choice of expert (chance at most "
        f"{chance:.1%}); the router beats a random one in {len(better)} of {len(gains)} layers{by}; and its experts "
        f"are worth more than their mean in {worth} of {len(costs)}."
    )


def _how(inspections: Sequence[Inspection], command: str) -> Section:
    B, S = inspections[0].probe.ids_BS.shape
    judged = inspections[0].counterfactual.num_tokens
    checkpoints = tuple(f"`{one.name}`: {one.checkpoint}" for one in inspections)
    return Section(
        "How it was measured",
        (
            Text(
                f"On {B} windows of {S} characters, {B * S:,} in all, spread evenly over the validation split: the "
                "same for every model with this text. Nothing is dropped unless stated. Of several choices the "
                "first counts as a token's expert. Intervals are of 95 %, with windows as the independent draws. "
                f"The router is judged on {judged:,} of these characters per layer, the experts on {WINDOWS} windows."
            ),
            Bullets(checkpoints),
            Code(command),
        ),
    )
