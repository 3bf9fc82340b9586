"""How a document reads as GitHub Markdown."""

import re
from urllib.parse import quote

from switch_lm.pages.characters import harmless, isolated
from switch_lm.pages.document import Document, pieces


def to_markdown(document: Document, *, pictures: str) -> str:
    """GitHub Markdown; `pictures`: the folder of the PNG files as seen from the file that this text is written to."""
    from switch_lm.pages.templates import TEMPLATES  # jinja2: only where a page is written

    environment = TEMPLATES.overlay(autoescape=False)
    environment.filters = environment.filters | {
        "line": _line,
        "cell": lambda text: _line(text).replace("|", r"\|"),  # a bar ends a cell even in code, so it is escaped last
        "paragraph": _paragraph,
        "fenced": _fenced,
        "alt": lambda text: re.sub(r"([\\\[\]`*<>])", r"\\\1", harmless(" ".join(text.split()))),
        "quote": quote,
    }
    return (
        environment.get_template("document.md.jinja").render(document=document, pictures=pictures).rstrip("\n") + "\n"
    )


def _line(text: str) -> str:
    """One line in which nothing but `code` is markup."""
    return "".join(_code(piece) if is_code else isolated(_escaped(piece)) for piece, is_code in pieces(text))


def _code(text: str) -> str:
    """Without a mark inside, which would be copied with it."""
    return f"`{text}`" if isolated(text) == text else f"\u2068`{text}`\u2069"


def _paragraph(text: str) -> str:
    """A line that does not begin as a heading, a list or a rule does."""
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", re.sub(r"^([#+=-])", r"\\\1", _line(text)))


def _escaped(text: str) -> str:
    """The text with all markup of GitHub behind a backslash; an underscore inside a word is none."""
    text = re.sub(r"([\\`*\[\]<>$~])", r"\\\1", text).replace("&", "&amp;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _fenced(text: str) -> str:
    """The lines as they are, between fences that are longer than any run of backquotes in them."""
    fence = "`" * (1 + max(2, *map(len, re.findall("`*", text))))
    return f"{fence}text\n{harmless(text.rstrip())}\n{fence}"
