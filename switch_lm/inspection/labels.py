"""What a router's choice could depend on: labels of every character of the probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.probe.reading import Probe
from switch_lm.text.vocabulary import Vocabulary

CHARACTER, NEXT, CLASS = "character", "next character", "character class"
LINE, WINDOW, SPEAKER = "position in the line", "position in the window", "speaker names"
CLASSES = ("vowel", "consonant", "upper case", "digit", "punctuation", "space", "newline")
LAST_EDGE = 512  # positions from here on are one label


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
