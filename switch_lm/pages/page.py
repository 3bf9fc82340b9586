"""How a document becomes a page: one HTML file that needs no network, follows the theme and has sortable tables."""

import base64
import hashlib
from typing import Any

from switch_lm.pages.coloured_text import coloured_text
from switch_lm.pages.document import Document
from switch_lm.pages.templates import HERE, TEMPLATES


def render(title: str, body: str) -> str:
    """Any page of the project. `title` is text; `body` is HTML, safe as it is, in which `table.sortable` is sortable.

    The page's policy lets the browser load nothing, and run no script but the project's own.
    """
    return _page("page.html.jinja", title=title, body=body)


def to_html(document: Document) -> str:
    """The document as a page of one file, with its pictures drawn in it."""
    from switch_lm.pages.pictures import as_inline_svg  # with them comes matplotlib: a sample's page does without
    from switch_lm.pages.plots import plain

    drawn = {"coloured_text": coloured_text, "as_inline_svg": as_inline_svg}
    return _page("document.html.jinja", title=plain(document.title), document=document, **drawn)


def _page(template: str, **content: Any) -> str:
    script = "\n".join(
        (HERE / name).read_text(encoding="utf-8") for name in ("page.js", "coloured_key.js", "coloured_text.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return TEMPLATES.get_template(template).render(script=script, digest=digest, **content)
