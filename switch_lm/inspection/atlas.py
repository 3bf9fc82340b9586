"""What explains the choice of expert? Labels of every character, and the routing atlas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, Reading
from switch_lm.stats.information import SHIFTS, Explained, explained
from switch_lm.text.vocabulary import Vocabulary

CHARACTER, NEXT, CLASS = "character", "next character", "character class"
LINE, WINDOW, SPEAKER = "position in the line", "position in the window", "speaker names"
CLASSES = ("vowel", "consonant", "upper case", "digit", "punctuation", "space", "newline")
LAST_STEP = 512  # positions from here on are one label
PLAIN = (CHARACTER, CLASS)  # the class follows from the character: beyond it, it explains nothing


def labels(probe: Probe, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Numbers (B, S) from 0, by the name of the label. Positions are in doubling steps: 0, 1, 2 to 3, 4 to 7, ..."""
    class_V = torch.tensor([CLASSES.index(character_class(character)) for character in vocabulary.characters])
    ids_BS, text = probe.ids_BS, vocabulary.decode(probe.split_ids)
    window_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)
    return {
        CHARACTER: ids_BS,
        NEXT: probe.target_BS,
        CLASS: class_V.to(ids_BS.device)[ids_BS],
        LINE: _doubling(probe.cut(position_in_line(text).to(ids_BS.device))),
        WINDOW: _doubling(window_BS),
        SPEAKER: probe.cut(in_speaker_name(text).to(ids_BS.device)).long(),
    }


def _doubling(position_BS: Tensor) -> Tensor:
    """The number of binary digits of a position."""
    return position_BS.clamp(max=LAST_STEP).float().frexp().exponent.long()


def character_class(character: str) -> str:
    """One of `CLASSES`. An upper-case vowel is upper case; white space other than a newline is space."""
    tests = {
        "newline": character == "\n",
        "space": character.isspace(),
        "digit": character.isdigit(),
        "upper case": character.isupper(),
        "vowel": character in "aeiou",
        "consonant": character.isalpha(),
    }
    return next((name for name, holds in tests.items() if holds), "punctuation")


def position_in_line(text: str) -> Tensor:
    """How many characters of its line precede each character (N,). A newline is the last character of its line."""
    return torch.tensor([position for line in text.splitlines(keepends=True) for position in range(len(line))])


def in_speaker_name(text: str) -> Tensor:
    """Which characters (N,) belong to a line that names a speaker: it follows an empty line and ends with a colon."""
    inside, before = [], None
    for line in text.splitlines(keepends=True):
        name = line.rstrip("\n")
        speaks = before == "\n" and name.endswith(":")
        inside += [speaks] * len(name) + [False] * (len(line) - len(name))
        before = line
    return torch.tensor(inside)


@dataclass(frozen=True)
class Atlas:
    """Characters sent to each expert as its first choice, and what explains the choice, layer by layer."""

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
    character_BS, shape = labels[CHARACTER], (num_characters, reading.num_experts)
    counts, result = [], []
    for block, expert_BS in zip(reading.blocks, reading.expert_LBS, strict=True):
        say(f"atlas, layer {block}")
        code_BS = character_BS * reading.num_experts + expert_BS
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
