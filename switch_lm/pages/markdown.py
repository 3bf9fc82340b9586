"""How a document reads as GitHub Markdown."""

from __future__ import annotations

import re
from urllib.parse import quote

from switch_lm.pages.coloured_text import ColouredText
from switch_lm.pages.document import (
    Bullets,
    Code,
    Document,
    HeatMap,
    Part,
    Picture,
    Table,
    Text,
    numeric_columns,
    pieces,
)


def to_markdown(document: Document, *, pictures: str) -> str:
    """GitHub Markdown; `pictures`: the folder of the PNG files as seen from the file that this text is written to."""
    blocks = [f"# {_line(document.title)}", _paragraph(document.lead)]
    for section in document.sections:
        blocks += [f"## {_line(section.heading)}", *(_part(part, pictures) for part in section.parts)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(part: Part, pictures: str) -> str:
    match part:
        case Text(text):
            return _paragraph(text)
        case Bullets(items):
            return "\n".join(f"- {_paragraph(item)}" for item in items)
        case Code(text):
            return _fenced(text)
        case Table():
            return _table(part)
        case Picture() | HeatMap():
            return _picture(part, pictures)
        case ColouredText():  # for a page alone
            return _paragraph(part.caption)


def _line(text: str) -> str:
    """One line in which nothing but `code` is markup."""
    return "".join(f"`{piece}`" if is_code else _escaped(piece) for piece, is_code in pieces(text))


def _paragraph(text: str) -> str:
    """A line that does not begin as a heading, a list or a rule does."""
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", re.sub(r"^([#+=-])", r"\\\1", _line(text)))


def _escaped(text: str) -> str:
    """The text with all that GitHub takes for markup behind a backslash; underscores inside words are none."""
    text = re.sub(r"([\\`*\[\]<>$~])", r"\\\1", text).replace("&", "&amp;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _table(table: Table) -> str:
    # A bar ends a cell even in code, so it is escaped last, over everything.
    rows = [[_line(heading) for heading in table.headings], *([_line(cell.text) for cell in row] for row in table.rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "|".join(" ---: " if numeric else " --- " for numeric in numeric_columns(table)) + "|"
    return "\n\n".join(
        block for block in (_bold(table.caption), "\n".join([lines[0], rule, *lines[1:]]), _note(table.note)) if block
    )


def _picture(picture: Picture | HeatMap, folder: str) -> str:
    place = quote(f"{folder}/{picture.name}.png")
    alt = re.sub(r"([\\\[\]`*<>])", r"\\\1", " ".join(picture.alt.split()))
    return "\n\n".join(block for block in (f"![{alt}]({place})", _note(picture.note)) if block)


def _bold(text: str) -> str:
    return f"**{_line(text)}**" if text.strip() else ""


def _note(text: str) -> str:
    return f"*{_line(text)}*" if text.strip() else ""
