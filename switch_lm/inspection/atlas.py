"""What explains the choice of expert? Labels of every character, and the routing atlas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, Reading
from switch_lm.stats.information import SHIFTS, Explained, explained
from switch_lm.text.encoding import LINE_ENDS
from switch_lm.text.vocabulary import Vocabulary

CHARACTER, NEXT, CLASS = "character", "next character", "character class"
LINE, WINDOW, SPEAKER = "position in the line", "position in the window", "speaker names"
CLASSES = ("vowel", "consonant", "upper case", "digit", "punctuation", "space", "newline")
LAST_STEP = 512  # positions from here on are one label
PLAIN = (CHARACTER, CLASS)  # the class follows from the character: beyond it, it explains nothing


def labels(probe: Probe, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Numbers (B, S) from 0, by the name of the label. Positions are in doubling steps: 0, 1, 2 to 3, 4 to 7, ..."""
    class_V = torch.tensor([CLASSES.index(character_class(character)) for character in vocabulary.characters])
    ids_BS, lines = probe.ids_BS, Lines.of(probe.split_ids, vocabulary.characters)
    window_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)
    return {
        CHARACTER: ids_BS,
        NEXT: probe.target_BS,
        CLASS: class_V.to(ids_BS.device)[ids_BS],
        LINE: _doubling(lines.position(probe.place_BS)),
        WINDOW: _doubling(window_BS),
        SPEAKER: lines.in_speaker_name(probe.place_BS).long(),
    }


def _doubling(position_BS: Tensor) -> Tensor:
    """The number of binary digits of a position."""
    return position_BS.clamp(max=LAST_STEP).float().frexp().exponent.long()


def character_class(character: str) -> str:
    """One of `CLASSES`. An upper-case vowel is upper case; white space that ends no line is space."""
    tests = {
        "newline": character in LINE_ENDS,
        "space": character.isspace(),
        "digit": character.isdigit(),
        "upper case": character.isupper(),
        "vowel": character in "aeiou",
        "consonant": character.isalpha(),
    }
    return next((name for name, holds in tests.items() if holds), "punctuation")


@dataclass(frozen=True)
class Lines:
    """The lines of a text: where each begins, where its line break begins, and which ones name a speaker (M)."""

    start_M: Tensor
    stop_M: Tensor
    speaks_M: Tensor  # follows an empty line and ends with a colon

    @classmethod
    def of(cls, ids: Tensor, characters: str) -> Self:
        """From the ids (N,) of a text, of any integer type. No other number of N is kept: a text may be long."""

        def places(marks: str) -> Tensor:
            is_mark_N = torch.zeros_like(ids, dtype=torch.bool)
            for number, character in enumerate(characters):
                if character in marks:
                    is_mark_N |= ids == number
            return is_mark_N

        breaks_N, first, end = places(LINE_ENDS), ids.new_zeros(1).long(), torch.tensor([len(ids)], device=ids.device)
        second_N = places("\n") & places("\r").roll(1)  # of \r\n; a text's first character is no second one
        second_N[0] = False
        breaks_N &= ~second_N.roll(-1)
        last_M = breaks_N.nonzero()[:, 0]
        start_M, stop_M = torch.cat([first, last_M + 1]), torch.cat([last_M - second_N[last_M].long(), end])
        empty_M, speaks_M = start_M == stop_M, places(":")[(stop_M - 1).clamp(min=0)]
        speaks_M &= ~empty_M & torch.cat([first.bool(), empty_M[:-1]])
        return cls(start_M, stop_M, speaks_M)

    def position(self, place: Tensor) -> Tensor:
        """How many characters of its line precede the one at each place; a line break is the end of its line."""
        return place - self.start_M[self._line(place)]

    def in_speaker_name(self, place: Tensor) -> Tensor:
        """Whether the character at each place belongs to a speaker's name."""
        line = self._line(place)
        return self.speaks_M[line] & (place < self.stop_M[line])

    def _line(self, place: Tensor) -> Tensor:
        return torch.searchsorted(self.start_M, place, right=True) - 1


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

    def findings(self, blocks: Sequence[int]) -> list[str]:
        """One sentence per layer, named by its block."""
        layers = zip(blocks, self.explained, strict=True)
        return [_sentence(block, of_layer, self.comparisons) for block, of_layer in layers]


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


def _sentence(block: int, labels: Sequence[Explained], comparisons: int) -> str:
    clear = [label for label in labels if label.beyond_chance(comparisons)]
    groups = {
        "more than by chance, the choice of expert is explained by": [x for x in clear if x.given is None],
        "beyond the character by": [x for x in clear if x.given is not None],
        "more than by chance does not show for": [label for label in labels if label not in clear],
    }
    parts = [f"{words} {', '.join(map(str, group))}" for words, group in groups.items() if group]
    return f"Layer {block}: {'; '.join(parts)}."
