"""To which classes the characters of a text belong: kinds of letters, words, lines, speakers, plays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from switch_lm.text.divisions import Division
from switch_lm.text.encoding import LINE_ENDS

CHARACTER, NEXT, CLASS = "character", "next character", "character class"
LINE, WINDOW, SPEAKER = "position in the line", "position in the window", "speaker names"
LAST_STEP = 512  # positions from here on are one label
CLASSES = ("vowel", "consonant", "upper case", "digit", "punctuation", "space", "newline")
MOST_PARTS = 12  # plays or speakers
SINGLE = {"vowel": "a vowel", "consonant": "a consonant", "upper case": "a capital", "digit": "a digit",
          "punctuation": "punctuation", "space": "a space", "newline": "a line break"}  # fmt: skip
PLURAL = {"vowel": "vowels", "consonant": "consonants", "upper case": "capitals", "digit": "digits",
          "punctuation": "punctuation", "space": "spaces", "newline": "line breaks"}  # fmt: skip
WRITTEN = (*PLURAL.values(), "word beginnings", "word ends", "speaker names", *(f"before {x}" for x in SINGLE.values()))


def labels(ids: Tensor, place_BS: Tensor, characters: str) -> dict[str, Tensor]:
    """Numbers (B, S) from 0 for characters of a text of these ids (N,) at these places, by the name of the label.

    Positions are in doubling steps: 0, 1, 2 to 3, 4 to 7, ..."""
    class_V = torch.tensor([CLASSES.index(character_class(character)) for character in characters])
    ids_BS, target_BS, lines = ids[place_BS].long(), ids[place_BS + 1].long(), Lines.of(ids, characters)
    window_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)
    return {
        CHARACTER: ids_BS,
        NEXT: target_BS,
        CLASS: class_V.to(ids_BS.device)[ids_BS],
        LINE: _doubling(lines.position(place_BS)),
        WINDOW: _doubling(window_BS),
        SPEAKER: lines.in_speaker_name(place_BS).long(),
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


def marks(ids: Tensor, place_BS: Tensor, characters: str, divisions: Mapping[str, Division]) -> dict[str, Tensor]:
    """Which characters (B, S) of a text of these ids (N,) belong to each class that occurs; a word is a run of letters.

    `place_BS`: where they stand in the text; `characters`: what each id stands for.
    `divisions`: of the split by "play" and "speaker", where they are known; of many, those with most characters.
    """
    last = len(ids) - 1
    class_V = torch.tensor([[*PLURAL].index(character_class(c)) for c in characters], device=ids.device)
    letter_V = torch.tensor([c.isalpha() for c in characters], device=ids.device)
    here_BS, before_BS, after_BS = (ids[(place_BS + n).clamp(0, last)].long() for n in (0, -1, 1))
    result = dict[str, Tensor]()
    for form, names, ids_BS in (
        ("{}", PLURAL, here_BS),
        ("after {}", SINGLE, before_BS),
        ("before {}", SINGLE, after_BS),
    ):
        result |= {form.format(name): class_V[ids_BS] == number for number, name in enumerate(names.values())}
    result["word beginnings"] = letter_V[here_BS] & ~letter_V[before_BS]
    result["word ends"] = letter_V[here_BS] & ~letter_V[after_BS]
    result["speaker names"] = Lines.of(ids, characters).in_speaker_name(place_BS)
    for by, division in divisions.items():
        part_BS = torch.as_tensor(division.part_N, device=ids.device).long()[place_BS]
        most = part_BS.flatten().bincount().argsort(descending=True, stable=True)[:MOST_PARTS]
        form = "the play {}" if by == "play" else "{} speaking"
        result |= {form.format(division.names[part]): part_BS == part for part in most.tolist()}
    return {name: mark_BS for name, mark_BS in result.items() if mark_BS.any() and not mark_BS.all()}
