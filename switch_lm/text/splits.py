"""Which parts of a text are trained on, and which are validated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from switch_lm.text.corpus import TEXTS, TINY_SHAKESPEARE, Corpus
from switch_lm.text.divisions import plays_named, plays_of
from switch_lm.text.given import TextError, require_given
from switch_lm.text.plays import ADDED, OF_TINY_SHAKESPEARE

if TYPE_CHECKING:  # commands look at the text that was asked for before they load torch
    from torch import Tensor

TRAIN_SHARE = 0.9  # nanoGPT, data/shakespeare_char/prepare.py
SHARE_OF_PLAY = 0.8  # that is trained on in `within_play`, its beginning
HISTORIES = tuple(name.rpartition("/")[2] for name in (*ADDED, *OF_TINY_SHAKESPEARE) if name.startswith("histories/"))
TUNING_SHARE = 0.05  # of the training text, its end
OF_ONE_PLAY = ("by_play", "within_play")  # that data.hold_out names
BLOCK, HELD_OUT = 2000, 10  # characters of a block of `scattered`, about; one of so many is validated
VALIDATED = TINY_SHAKESPEARE.num_bytes - int(TRAIN_SHARE * TINY_SHAKESPEARE.num_bytes)  # characters, of plays too


@dataclass(frozen=True)
class Split:
    """Parts of a text by the numbers of their characters, in the order of the text."""

    training: tuple[range, ...]
    validation: tuple[range, ...]

    @classmethod
    def of(cls, corpus: Corpus, *, split: str = "standard", hold_out: str | None = None) -> Split:
        """By the rule `data.split`. TextError if it needs plays and the text has none, or not this one."""
        whole = len(corpus.ids)
        num_training = whole - VALIDATED if corpus.name == "plays" else int(TRAIN_SHARE * whole)
        if split == "tuning":  # what is validated otherwise is in neither part
            num_training, whole = int((1 - TUNING_SHARE) * num_training), num_training
        if split in ("standard", "tuning"):
            return cls((range(num_training),), (range(num_training, whole),))
        plays = plays_of(corpus)
        if not plays:
            raise _no_plays(split, corpus.source)
        ends = [*(play.start for play in plays[1:]), whole]
        parts = {play.name: range(play.start, end) for play, end in zip(plays, ends, strict=True)}
        if split == "without_histories":
            return cls(tuple(_between([parts[name] for name in HISTORIES if name in parts], num_training)),
                       (range(num_training, whole),))  # fmt: skip
        if split == "within_play":
            part = parts[str(hold_out)]
            return cls((part[: int(SHARE_OF_PLAY * len(part))],), (part[int(SHARE_OF_PLAY * len(part)) :],))
        if split == "scattered":
            held = [block for name, part in parts.items() for block in _scattered(corpus, name, part)]
        else:
            held = [parts[str(hold_out)]]
        return cls(tuple(_between(held, whole)), tuple(held))

    def training_ids(self, corpus: Corpus) -> Tensor:
        """Their ids (N,)."""
        return _joined(corpus, self.training)

    def validation_ids(self, corpus: Corpus) -> Tensor:
        """Their ids (N,)."""
        return _joined(corpus, self.validation)


def require_text(path: str | None, text: str, split: str, hold_out: str | None) -> None:
    """Checks quickly what the keys of `data` with these names ask for. Errors: TextError."""
    require_given(path, text)
    if split in ("standard", "tuning"):
        return
    if path:
        copies = {known.num_bytes: name for name, known in TEXTS.items()}
        if (size := Path(path).stat().st_size) not in copies:
            raise _no_plays(split, path)
        text = copies[size]
    if split in OF_ONE_PLAY and hold_out not in (names := [play.name for play in plays_named(text)]):
        raise TextError(f"data.hold_out={hold_out}: it must be a play of data.text={text}; one of {', '.join(names)}")


def _no_plays(split: str, source: str) -> TextError:
    return TextError(
        f"data.split={split}: the text must be Tiny Shakespeare or data=plays, whose plays are known, not {source}; "
        "leave out data.split, or data.path and SWITCH_LM_DATA"
    )


def _joined(corpus: Corpus, parts: Sequence[range]) -> Tensor:
    import torch

    ids = torch.from_numpy(corpus.ids)
    taken = [ids[part.start : part.stop] for part in parts]
    return taken[0] if len(taken) == 1 else torch.cat(taken)  # one needs no copy


def _between(held: Sequence[range], whole: int) -> Iterator[range]:
    """What is left of the text."""
    edges = [0, *(edge for part in held for edge in (part.start, part.stop)), whole]
    yield from (range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)


def _scattered(corpus: Corpus, name: str, play: range) -> Iterator[range]:
    """About a tenth of a play: of each ten blocks, which end with a speech, one that is drawn, always the same.

    The play is cut at the first end of a speech after each 2,000 characters. A last group may have fewer blocks.
    """
    edges = [play.start]
    for border in borders(corpus, play):
        if border - edges[-1] >= BLOCK and play.stop - border >= BLOCK:
            edges.append(border)
    blocks = [range(a, b) for a, b in pairwise([*edges, play.stop])]
    draw = random.Random(name)
    for first in range(0, len(blocks), HELD_OUT):
        number = first + draw.randrange(HELD_OUT)
        yield from blocks[number : number + 1]


def borders(corpus: Corpus, part: range) -> list[int]:
    """Where each speech but the first begins: after an empty line."""
    newline = corpus.characters.find("\n")
    is_newline = corpus.ids[part.start : part.stop] == newline
    return (part.start + 2 + (is_newline[:-1] & is_newline[1:]).nonzero()[0]).tolist()
