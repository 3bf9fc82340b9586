"""What explains the choice of expert? Labels of every character, and the routing atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, Reading
from switch_lm.stats.information import CONFIDENCE, SHIFTS, Explained, explained
from switch_lm.text.vocabulary import Vocabulary

CHARACTER, NEXT, CLASS = "character", "next character", "character class"
LINE, WINDOW, SPEAKER = "position in the line", "position in the window", "speaker names"
CLASSES = ("vowel", "consonant", "upper case", "digit", "punctuation", "space", "newline")
LAST_EDGE = 512  # positions from here on are one label
PLAIN = (CHARACTER, CLASS)  # the class follows from the character: beyond it, it explains nothing


@dataclass(frozen=True)
class Label:
    """One label of each character, as a number (B, S), and what each number stands for."""

    name: str
    id_BS: Tensor
    values: tuple[str, ...]


def labels(probe: Probe, vocabulary: Vocabulary) -> tuple[Label, ...]:
    """The character comes first. Positions are grouped in doubling steps: 0, 1, 2 to 3, 4 to 7, ..."""
    characters = tuple(vocabulary.characters)
    class_V = torch.tensor([CLASSES.index(character_class(character)) for character in characters])
    ids_BS, device = probe.ids_BS, probe.ids_BS.device
    line_BS = probe.cut(position_in_line(vocabulary.decode(probe.split_ids)).to(device))
    window_BS = torch.arange(ids_BS.shape[1], device=device).expand_as(ids_BS)
    speaker_BS = probe.cut(in_speaker_name(vocabulary.decode(probe.split_ids)).to(device))
    return (
        Label(CHARACTER, ids_BS, characters),
        Label(NEXT, probe.target_BS, characters),
        Label(CLASS, class_V.to(device)[ids_BS], CLASSES),
        _doubling(LINE, line_BS),
        _doubling(WINDOW, window_BS),
        Label(SPEAKER, speaker_BS.long(), ("elsewhere", "in a speaker's name")),
    )


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


def _doubling(name: str, position_BS: Tensor) -> Label:
    edges = [2**power for power in range(LAST_EDGE.bit_length()) if 2**power <= int(position_BS.max())]
    ends = [*edges[1:], None] if edges else []
    values = ["0"] + [
        f"{low} and more" if end is None else str(low) if end == low + 1 else f"{low} to {end - 1}"
        for low, end in zip(edges, ends, strict=True)
    ]
    edge_N = torch.tensor(edges, device=position_BS.device, dtype=position_BS.dtype)
    return Label(name, torch.bucketize(position_BS.contiguous(), edge_N, right=True), tuple(values))


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
