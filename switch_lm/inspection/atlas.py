"""What explains the choice of expert? Labels of every character, and the routing atlas."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Reading
from switch_lm.stats.information import SHIFTS, Explained, explained
from switch_lm.text.classes import CHARACTER, CLASS

PLAIN = (CHARACTER, CLASS)  # the class follows from the character: beyond it, it explains nothing


@dataclass(frozen=True)
class Atlas:
    """Characters sent to each expert as its first choice, and what explains the choice, layer by layer.

    Where a character has no expert, one more column counts those without.
    """

    count_LVE: Tensor
    explained: tuple[tuple[Explained, ...], ...]

    @property
    def comparisons(self) -> int:
        """How many intervals there are: each is corrected for all."""
        return sum(map(len, self.explained))


def atlas(
    reading: Reading,
    labels: Mapping[str, Tensor],
    *,
    num_characters: int,
    seed: int = 0,
    shifts: int = SHIFTS,
    say: Say = silent,
) -> Atlas:
    """What each of `labels` explains of the first choice; all but the character and its class beyond the character."""
    choices = reading.num_experts + int((reading.expert_LBS == reading.num_experts).any())
    character_BS, shape = labels[CHARACTER], (num_characters, choices)
    counts, result = [], []
    for block, expert_BS in zip(reading.blocks, reading.expert_LBS, strict=True):
        say(f"atlas, layer {block}")
        code_BS = character_BS * choices + expert_BS
        counts.append(torch.bincount(code_BS.flatten(), minlength=shape[0] * shape[1]).view(shape))
        of_layer = []
        for name, label_BS in labels.items():
            given_BS, given = (None, None) if name in PLAIN else (character_BS, CHARACTER)
            of_layer.append(
                explained(expert_BS, label_BS, label=name, given_BS=given_BS, given=given, seed=seed, shifts=shifts)
            )
        result.append(tuple(of_layer))
    return Atlas(torch.stack(counts), tuple(result))
