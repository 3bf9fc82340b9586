"""The vocabulary: characters and their ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from switch_lm.text.characters import unknown
from switch_lm.text.encoding import start_of


@dataclass(frozen=True)
class Vocabulary:
    """The distinct characters of a text in code-point order; the id of a character is its index."""

    characters: str
    start: str = field(default="", compare=False)  # stands for an empty prompt

    def __post_init__(self) -> None:
        """Older checkpoints store no start: a line break, else the first letter, else the first character."""
        known = "\n" if "\n" in self.characters else self.start
        letters = (character for character in self.characters if character.isalpha())
        object.__setattr__(self, "start", known or next(letters, self.characters[:1]))

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The vocabulary of a text."""
        characters = "".join(sorted(set(text)))
        return cls(characters, start_of(cls(characters).encode(text).numpy(), characters))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The ids (S,) of the characters of `text`, int64. ValueError names the first that is not in the vocabulary."""
        ids = {character: i for i, character in enumerate(self.characters)}
        try:
            return torch.tensor([ids[character] for character in text], dtype=torch.long)
        except KeyError as error:
            raise ValueError(unknown(text, text.index(error.args[0]), self.characters)) from None

    def decode(self, ids: Tensor) -> str:
        """The text with these ids (S,)."""
        return "".join(self.characters[i] for i in ids.tolist())
