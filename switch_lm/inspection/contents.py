"""What the page of an inspection says, of one model or of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

from switch_lm.inspection import pictures
from switch_lm.inspection.ablation import WINDOWS
from switch_lm.inspection.study import Inspection
from switch_lm.inspection.tables import expert_table, explained_table, router_table
from switch_lm.pages.document import Bullets, Code, Document, Part, Section, Text

MOST_EXPERTS = 64  # that a coloured text tells apart
ATLAS, DROPS, ROUTER, EXPERTS, TIME = (
    "What explains the choice of expert?",
    "Who is dropped?",
    "Was the router right?",
    "Are the experts different?",
    "When did they specialise?",
)


def build(found: Sequence[Inspection], *, command: str) -> Document:
    """Tables hold all models; texts and pictures follow one another, model by model."""
    keys = [str(i) for i in range(len(found))]
    parts: dict[str, list[Part]] = {
        ATLAS: [explained_table(found)],
        DROPS: [],
        ROUTER: [router_table(found)],
        EXPERTS: [expert_table(found)],
        TIME: [],
    }
    for one, key in zip(found, keys, strict=True):
        for heading, sentences in one.findings().items():
            if len(found) > 1:
                parts[heading].append(Text(f"`{one.name}`:"))
            parts[heading].append(Bullets(tuple(sentences)))
        if one.text.num_experts <= MOST_EXPERTS:
            parts[ATLAS].append(pictures.coloured(one, key))
        else:
            parts[ATLAS].append(Text(f"No coloured text: it tells {MOST_EXPERTS} experts apart, and there are more."))
        parts[ATLAS] += pictures.atlases(one, key)
        if one.drops is not None and one.drops.cost is not None:
            parts[DROPS] += pictures.dropped_pictures(
                one.name, key, one.drops, one.atlas.count_LVE[0].sum(dim=1), one.vocabulary.characters
            )
        parts[ROUTER].append(pictures.router_picture(one, key))
        parts[EXPERTS] += pictures.expert_maps(one, key)
        if one.history is not None and len(one.history.steps) > 1:
            parts[TIME] += pictures.history_pictures(one.name, key, one.history)
    sections = [Section(heading, tuple(of_it)) for heading, of_it in parts.items()]
    names = " and ".join(f"`{one.name}`" for one in found)
    return Document(f"What the experts of {names} do", lead(found), (*sections, how(found, command)))


def lead(found: Sequence[Inspection]) -> str:
    """The main figures, from the least to the greatest of a model's layers."""
    return " ".join(_summary(one) for one in found)


def _summary(found: Inspection) -> str:
    character = [layer[0].share for layer in found.atlas.explained]
    chance = max(layer[0].chance for layer in found.atlas.explained)
    gains = [one.chosen_gains_on_random for one in found.counterfactual.held]
    better = [gain.mean for gain in gains if gain.resolved and gain.mean > 0]
    by = f", by {min(better):.2f} to {max(better):.2f} nats" if better else ""
    costs = [layer.averaged for layer in found.ablation.layers]
    worth = sum(cost.resolved and cost.mean > 0 for cost in costs)
    return (
        f"In `{found.name}` the character itself explains {_span(character)} of the choice of expert (chance at most "
        f"{chance:.1%}); the router beats a random one in {len(better)} of {len(gains)} layers{by}; and its experts "
        f"are worth more than their mean in {worth} of {len(costs)}."
    )


def _span(shares: Sequence[float]) -> str:
    return f"{min(shares):.0%} to {max(shares):.0%}" if len(shares) > 1 else f"{shares[0]:.0%}"


def how(found: Sequence[Inspection], command: str) -> Section:
    B, S = found[0].probe.ids_BS.shape
    judged = found[0].counterfactual.num_tokens
    checkpoints = tuple(f"`{one.name}`: {one.checkpoint}" for one in found)
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
