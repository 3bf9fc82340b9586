"""The routing atlas: which characters each expert gets, and how much of the choice each label explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.inspection.labels import CHARACTER, CLASS, Label
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Reading
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
        return [_sentence(layer, of_layer) for layer, of_layer in enumerate(self.explained)] + [
            f"Of these {compared} comparisons about {by_chance:.0f} would stand out by chance alone."
        ]


def atlas(
    reading: Reading, labels: Sequence[Label], *, seed: int = 0, shifts: int = SHIFTS, say: Say = silent
) -> Atlas:
    """What each of `labels` explains of the first choice; all but the character and its class beyond the character."""
    [character] = [label for label in labels if label.name == CHARACTER]
    character_T, shape = character.id_BS.flatten(), (len(character.values), reading.num_experts)
    counts, result = [], []
    for layer, expert_T in enumerate(reading.expert_LBS.flatten(1)):
        say(f"atlas, layer {layer}")
        code_T = character_T * reading.num_experts + expert_T
        counts.append(torch.bincount(code_T, minlength=shape[0] * shape[1]).view(shape))
        of_layer = []
        for label in labels:
            given_T, given = (None, None) if label.name in PLAIN else (character_T, CHARACTER)
            of_layer.append(
                explained(
                    expert_T,
                    label.id_BS.flatten(),
                    label=label.name,
                    given_T=given_T,
                    given=given,
                    seed=seed,
                    shifts=shifts,
                )
            )
        result.append(tuple(of_layer))
    return Atlas(torch.stack(counts), tuple(result))


def _sentence(layer: int, labels: Sequence[Explained]) -> str:
    clear = [label for label in labels if label.beyond_chance]
    groups = {
        "the choice of expert is explained by": [label for label in clear if label.given is None],
        "beyond the character by": [label for label in clear if label.given is not None],
        "no more than by chance by": [label for label in labels if not label.beyond_chance],
    }
    parts = [f"{words} {', '.join(map(str, group))}" for words, group in groups.items() if group]
    return f"Layer {layer}: {'; '.join(parts)}."
