"""Where plays, scenes and speeches begin in Tiny Shakespeare and in `plays`: from a table, so no package is needed."""

from __future__ import annotations

from functools import cache
from importlib import resources

from switch_lm.text import plays
from switch_lm.text.corpus import PLAYS, TINY_SHAKESPEARE, Corpus
from switch_lm.text.plays import Play

TABLE = "plays_scenes.txt"
HEADER = "# play, then the first character of each of its scenes; the last nine from the start of Tiny Shakespeare"


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
