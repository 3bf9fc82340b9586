"""Where plays, scenes and speeches begin in Tiny Shakespeare and in `plays`: from a table, so no package is needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import NamedTuple

from switch_lm.text import plays
from switch_lm.text.corpus import PLAYS, TINY_SHAKESPEARE, Corpus
from switch_lm.text.encoding import Ids
from switch_lm.text.given import TextError
from switch_lm.text.plays import Play

TABLE = "plays_scenes.txt"
HEADER = "# play, then the first character of each of its scenes; the last nine from the start of Tiny Shakespeare"
SPEECH = re.compile(r"(?:\A|(?<=\n\n))([^\n]+):\n")


class Division(NamedTuple):
    """To which play or speaker, and to which scene, each of N characters belongs."""

    names: tuple[str, ...]
    part_N: Ids  # the number of the name
    scene_N: Ids  # counted through the text


def divide(corpus: Corpus, parts: Iterable[range], *, by: str) -> Division:
    """The characters of the joined parts of a text by "play" or "speaker". TextError if its plays are not known.

    A speech is `NAME:` on a line of its own at the start of the text or after an empty line, and all up to the next.
    Speakers of one name in several plays differ: GLOUCESTER (king-lear), GLOUCESTER (richard-iii).
    """
    import numpy as np

    if not (known := plays_of(corpus)):
        rule = "it needs a text whose plays are known, Tiny Shakespeare or data=plays"
        raise TextError(f"--by {by}: {rule}, and not {corpus.source}; leave it out, and --against")
    place_N = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    scene_N = np.searchsorted([scene for play in known for scene in play.scenes], place_N, side="right") - 1
    play_starts, names = [play.start for play in known], [play.name for play in known]
    if by == "play":
        return Division(tuple(names), np.searchsorted(play_starts, place_N, side="right") - 1, scene_N)
    speeches = list(SPEECH.finditer(corpus.text()))
    starts = [speech.start() for speech in speeches]
    plays_S = np.searchsorted(play_starts, starts, side="right") - 1  # S: speeches
    labels = [f"{speech[1]} ({names[play]})" for speech, play in zip(speeches, plays_S, strict=True)]
    speakers, part_S = np.unique(labels, return_inverse=True)
    return Division(tuple(speakers.tolist()), part_S[np.searchsorted(starts, place_N, side="right") - 1], scene_N)


def plays_of(corpus: Corpus) -> tuple[Play, ...]:
    """The plays of a text in their order, each with its scenes; none of a text that is not known."""
    return plays_named(corpus.name)


@cache
def plays_named(text: str | None) -> tuple[Play, ...]:
    """The plays of a text by its name, that of `data.text`."""
    if text is None:
        return ()
    lines = resources.files("switch_lm.text").joinpath(TABLE).read_text(encoding="utf-8").splitlines()[1:]
    named = [Play(name, tuple(map(int, scenes))) for name, *scenes in map(str.split, lines)]
    added, tiny = named[: -len(plays.OF_TINY_SHAKESPEARE)], named[-len(plays.OF_TINY_SHAKESPEARE) :]
    if text == "tiny_shakespeare":
        return tuple(tiny)
    before = PLAYS.num_bytes - TINY_SHAKESPEARE.num_bytes  # a byte is a character in both
    return (*added, *(Play(play.name, tuple(before + scene for scene in play.scenes)) for play in tiny))


def table() -> str:
    """The content of the table, from the files of the package. Errors: PlaysError."""
    tiny = [
        Play(play.name, tuple(scene for scene in play.scenes if scene < TINY_SHAKESPEARE.num_bytes))
        for play in plays.tiny_shakespeare().plays
    ]
    rows = [" ".join([play.name, *map(str, play.scenes)]) for play in (*plays.added_plays().plays, *tiny)]
    return "\n".join([HEADER, *rows, ""])
