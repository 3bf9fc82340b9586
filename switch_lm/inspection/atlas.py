"""The routing atlas: which characters each expert gets, and how much of the choice each label explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.inspection.labels import CHARACTER, CLASS, Label
from switch_lm.probe.probe import Reading, Say, silent
from switch_lm.stats.information import CONFIDENCE, SHIFTS, Explained, explained

PLAIN = (CHARACTER, CLASS)  # the class follows from the character: beyond it, it explains nothing


@dataclass(frozen=True)
class Atlas:
    """Characters sent to each expert as its first choice, and what explains the choice, layer by layer."""

    count_LVE: Tensor
    explained: tuple[tuple[Explained, ...], ...]

    def findings(self) -> list[str]:
        """One sentence per layer, and how many of their comparisons chance alone would let stand out."""
        compared = sum(map(len, self.explained))
        by_chance = (1.0 - CONFIDENCE) * compared
        return [_sentence(layer, found) for layer, found in enumerate(self.explained)] + [
            f"Of these {compared} comparisons about {by_chance:.0f} would stand out by chance alone."
        ]


def atlas(
    reading: Reading, labels: Sequence[Label], *, seed: int = 0, shifts: int = SHIFTS, say: Say = silent
) -> Atlas:
    """What each of `labels` explains of the first choice; all but the character and its class beyond the character."""
    [character] = [label for label in labels if label.name == CHARACTER]
    character_T, num_experts = character.id_BS.flatten(), reading.num_experts
    num_cells = len(character.values) * num_experts
    counts, found = [], []
    for layer, expert_BS in enumerate(reading.expert_LBS):
        say(f"atlas, layer {layer}")
        expert_T = expert_BS.flatten()
        counts.append(torch.bincount(character_T * num_experts + expert_T, minlength=num_cells).view(-1, num_experts))
        found.append(
            tuple(
                explained(
                    expert_T,
                    label.id_BS.flatten(),
                    label=label.name,
                    given_T=None if label.name in PLAIN else character_T,
                    given=None if label.name in PLAIN else CHARACTER,
                    seed=seed,
                    shifts=shifts,
                )
                for label in labels
            )
        )
    return Atlas(torch.stack(counts), tuple(found))


def _sentence(layer: int, found: Sequence[Explained]) -> str:
    alone = ", ".join(map(str, (one for one in found if one.given is None and one.beyond_chance)))
    beyond = ", ".join(map(str, (one for one in found if one.given is not None and one.beyond_chance)))
    nothing = ", ".join(str(one) for one in found if not one.beyond_chance)
    parts = [f"the choice of expert is explained by {alone}"] if alone else []
    parts += [f"beyond the character by {beyond}"] if beyond else []
    parts += [f"no more than by chance by {nothing}"] if nothing else []
    return f"Layer {layer}: {'; '.join(parts)}."
