"""Which experts of two models are alike: matched by the characters that both get."""

import torch
from torch import Tensor

from switch_lm.inspection.cards import ExpertCard
from switch_lm.inspection.study import Inspection
from switch_lm.stats.shares import most_shared

# A card of each model, or of one; and the share of the first expert's characters that the second gets, of one text.
Pair = tuple[ExpertCard | None, ExpertCard | None, float | None]


def matched(one: Inspection, other: Inspection) -> dict[int, list[Pair]]:
    """By the number of the block, in order. Of two texts the experts are matched by their numbers."""
    result = {}
    same_text = one.vocabulary.characters == other.vocabulary.characters
    same_text = same_text and torch.equal(one.probe.ids_BS, other.probe.ids_BS)
    for block in sorted({*one.blocks, *other.blocks}):
        (ours, at_ET), (theirs, at_FT) = (_layer(model, block) for model in (one, other))
        shared_EF = at_ET @ at_FT.T if same_text else torch.zeros(len(ours), len(theirs))
        rows, columns = most_shared(shared_EF)
        shares = (shared_EF / at_ET.sum(dim=1, keepdim=True).clamp(min=1))[rows, columns].tolist()
        pairs: list[Pair] = [
            (ours[i], theirs[j], share if same_text else None)
            for i, j, share in zip(rows, columns, shares, strict=True)
        ]
        pairs += [(card, None, None) for i, card in enumerate(ours) if i not in rows]
        result[block] = pairs + [(None, card, None) for j, card in enumerate(theirs) if j not in columns]
    return result


def _layer(model: Inspection, block: int) -> tuple[tuple[ExpertCard, ...], Tensor]:
    """The cards of a layer, none if the model has none there, and which characters each expert gets (E, T)."""
    layers = dict(zip(model.blocks, zip(model.cards.layers, model.assignments, strict=True), strict=True))
    cards, assignments = layers.get(block, ((), ()))
    at_ET, place = torch.zeros(len(cards), model.probe.ids_BS.numel()), {c.expert: row for row, c in enumerate(cards)}
    for token, expert, _ in assignments:
        if expert in place:
            at_ET[place[expert], token] = 1.0
    return cards, at_ET
