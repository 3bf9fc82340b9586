"""How a document becomes a page: one HTML file that needs no network, follows the theme and has sortable tables."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from string import Template

from switch_lm.pages.coloured_text import ColouredText, coloured_text
from switch_lm.pages.document import (
    Bullets,
    Cell,
    Code,
    Document,
    HeatMap,
    Part,
    Picture,
    Section,
    Table,
    Text,
    number,
    numeric_columns,
    pieces,
)
from switch_lm.pages.pictures import as_inline_svg

HERE = Path(__file__).resolve().parent
SCRIPTS = ("page.js", "coloured_text.js")
CONTENTS_FROM = 3  # sections


def render(title: str, body: str) -> str:
    """Any page of the project. `title` is text; `body` is HTML, safe as it is, in which `table.sortable` is sortable.

    The page's policy lets the browser load nothing, and run no script but the template's own.
    """
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "; ".join(
        [
            "default-src 'none'",
            "style-src 'unsafe-inline'",  # the drawings carry style attributes
            f"script-src 'sha256-{digest}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return template.substitute(policy=policy, title=escape(title), script=script, body=body)


def to_html(document: Document) -> str:
    """The document as a page of one file, pictures drawn in it."""
    header = f'<header>\n<h1>{_line(document.title)}</h1>\n<p class="lead">{_line(document.lead)}</p>\n</header>'
    sections = [_section(section, n) for n, section in enumerate(document.sections, 1)]
    main = "<main>\n" + "\n".join(sections) + "\n</main>"
    title = "".join(piece for piece, _ in pieces(document.title))
    return render(title, "\n".join(part for part in (header, _contents(document), main) if part))


def _contents(document: Document) -> str:
    """Where to find what, if there is enough of it."""
    if len(document.sections) < CONTENTS_FROM:
        return ""
    links = (f'<li><a href="#section-{n}">{_line(s.heading)}</a></li>' for n, s in enumerate(document.sections, 1))
    return f'<nav aria-labelledby="contents">\n<h2 id="contents">Contents</h2>\n<ol>{"".join(links)}</ol>\n</nav>'


def _section(section: Section, n: int) -> str:
    name = f"section-{n}"
    parts = "\n".join(_part(part, f"{name}-{i}") for i, part in enumerate(section.parts, 1))
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_line(section.heading)}</h2>\n{parts}\n</section>'


def _part(part: Part, name: str) -> str:
    match part:
        case Text(text):
            return f"<p>{_line(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_line(item)}</li>" for item in items) + "\n</ul>"
        case Code(text):
            return f'<pre tabindex="0">{escape(text.strip(chr(10)))}</pre>'
        case Table():
            return _table(part, name)
        case Picture() | HeatMap():
            return _picture(part)
        case ColouredText():
            return f"<p>{_line(part.caption)}</p>\n{coloured_text(part.name, part.text, part.layers)}"


def _line(text: str, *, breakable: bool = False) -> str:
    """Escaped text in which `code` is set as such; a breakable one, such as a long name, ends lines after its words."""
    line = []
    for piece, is_code in pieces(text):
        safe = re.sub(r"(?<=[_/=])(?=\w)", "<wbr>", escape(piece)) if breakable else escape(piece)
        line.append(f"<code>{safe}</code>" if is_code else safe)
    return "".join(line)


def _note(text: str) -> str:
    return f'\n<p class="note">{_line(text)}</p>' if text.strip() else ""


def _picture(picture: Picture | HeatMap) -> str:
    caption = f"<figcaption>{_line(picture.title)}</figcaption>"
    return f"<figure>\n{caption}\n{as_inline_svg(picture)}{_note(picture.note)}\n</figure>"


def _table(table: Table, name: str) -> str:
    """A table in a box of its own, in which it scrolls sideways when it is wider than the page."""
    marks = [' class="number"' if numeric else "" for numeric in numeric_columns(table)]
    headings = "".join(f'<th scope="col"{m}>{_line(h)}</th>' for m, h in zip(marks, table.headings, strict=True))
    rows = "\n".join(_row(row, marks) for row in table.rows)
    return (
        f'<div class="table">\n<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0">\n'
        f'<table class="sortable">\n<caption><span id="{name}">{_line(table.caption)}</span></caption>\n'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>{_note(table.note)}\n</div>"
    )


def _row(row: tuple[Cell, ...], marks: list[str]) -> str:
    """The first cell is the row's name."""
    cells = []
    for i, (cell, mark) in enumerate(zip(row, marks, strict=True)):
        value = number(cell)
        sort = "" if value is None else f' data-sort="{_javascript(value)}"'
        if i == 0:
            cells.append(f'<th scope="row"{mark}{sort}>{_line(cell.text, breakable=True)}</th>')
        else:
            cells.append(f"<td{mark}{sort}>{_line(cell.text)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _javascript(value: float) -> str:
    """The number as JavaScript's Number() reads it."""
    return repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")
