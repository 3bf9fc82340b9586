"""The page: one file that loads nothing, in which names are harmless and every part is found where it belongs."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import switch_lm
from switch_lm.pages.document import Bullets, Cell, Code, Document, Part, Picture, Section, Series, Table, Text
from switch_lm.pages.page import render, to_html
from switch_lm.pages.templates import TEMPLATES

PACKAGE = Path(switch_lm.__file__).parent
EVIL = "<script>alert('&')</script><img src=x onerror=alert(1)>\"`</code>`{{ body }}{% raw %}"
VOID = {"meta", "link", "img", "br", "wbr", "input", "hr"}


class Outline(HTMLParser):
    """The elements of a page, each with its attributes and the text in it; badly nested ones are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.found.append((tag, dict(attrs), texts))
        if tag not in VOID:
            self.open.append((tag, texts))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, texts in self.open:
            texts.append(data)

    def texts(self, tag: str) -> list[str]:
        """What is written in each element of that name."""
        return ["".join(texts) for name, _, texts in self.found if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of that name."""
        return [attributes for name, attributes, _ in self.found if name == tag]


def picture(text: str = "loss") -> Picture:
    points = Series(text, (1.0, 2.0), (2.0, 1.0), labels=(text, "b"), line=False)
    return Picture("loss", text, text, text, text, (points, Series("c", (1.0,), (1.0,))), note=text)


def document(text: str = "x", *, sections: int = 3) -> Document:
    rows = ((Cell(text), Cell("1.50 ± 0.1", 1.5)), (Cell("dense_control"), Cell("diverged", math.inf)))
    parts: tuple[Part, ...] = (Text(text), Bullets((text, "b")), Code(text), Table(text, (text, "loss"), rows, text))
    return Document(text, text, (Section(text, (*parts, picture(text))),) + (Section("More", ()),) * (sections - 1))


def test_parts_are_found_by_reader_and_by_screen_reader() -> None:
    page = Outline(to_html(document("run `x`")))
    assert page.attributes("html") == [{"lang": "en"}]
    assert page.texts("title")[0] == "run x"  # those of points follow
    assert page.texts("h1") == ["run x"]
    assert page.texts("h2") == ["Contents", "run x", "More", "More"]
    assert page.texts("caption") == page.texts("figcaption") == ["run x"]
    assert page.texts("pre") == ["run `x`"]
    assert page.texts("li")[-2:] == ["run x", "b"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    assert [a["scope"] for a in page.attributes("th")] == ["col", "col", "row", "row"]
    assert [a.get("role") for a in page.attributes("svg")] == ["img"]


def test_numbers_are_marked_and_carry_what_they_are_sorted_by() -> None:
    page = Outline(to_html(document()))
    assert page.attributes("td") == [
        {"class": "number", "data-sort": "1.5"},
        {"class": "number", "data-sort": "Infinity"},
    ]
    assert page.attributes("th")[1]["class"] == "number"


@pytest.mark.parametrize(("sections", "count"), [(2, 0), (3, 1)])
def test_contents_are_listed_from_three_sections_on(sections: int, count: int) -> None:
    page = Outline(to_html(document(sections=sections)))
    targets = {a["id"] for _, a, _ in page.found if "id" in a}
    assert len(page.texts("nav")) == count
    assert {f"#{target}" for target in targets} >= {a["href"] for a in page.attributes("a")}


def test_an_identifier_is_used_once_and_whatever_is_referred_to_exists() -> None:
    page = Outline(to_html(document()))
    ids = [a["id"] for _, a, _ in page.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a, _ in page.found if "aria-labelledby" in a} <= set(ids)


def test_a_name_with_markup_is_harmless_everywhere() -> None:
    page = Outline(to_html(document(EVIL)))
    assert len(page.texts("script")) == 1
    assert not page.attributes("img")
    assert not [a for _, attributes, _ in page.found for a in attributes if a.startswith("on")]
    assert page.texts("h1") == [EVIL.replace("`", "")]
    assert page.texts("pre") == [EVIL]
    assert page.attributes("svg")[0]["aria-label"] == EVIL.replace("`", " ")


def test_the_title_of_any_page_is_text_and_its_body_is_taken_as_it_is() -> None:
    html = render(EVIL, "<main>{{ title }}</main>")
    assert Outline(html).texts("title") == [EVIL]
    assert "<main>{{ title }}</main>" in html


def test_the_page_loads_nothing_and_its_policy_lets_it_load_nothing() -> None:
    html = to_html(document())
    page = Outline(html)
    links = [v for _, a, _ in page.found for k, v in a.items() if k.rpartition(":")[2] in {"src", "href", "srcset"}]
    assert all(link and link.startswith(("#", "data:,")) for link in links)
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import|//[a-z]+\.[a-z]", html)
    (script,) = page.texts("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}';" in policy


def test_a_name_without_a_value_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="missing"):
        TEMPLATES.from_string("{{ missing }}").render()


def test_templates_and_pictures_are_loaded_only_where_a_page_is_written() -> None:
    script = (
        "import sys; from switch_lm.pages import coloured_text, document, markdown\n"
        "assert not {'jinja2', 'matplotlib', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], timeout=120, check=True)


def test_the_script_is_short_and_plain() -> None:
    script = (PACKAGE / "pages" / "page.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 150
    assert not re.search(r"</script|\bimport\b|\bfetch\(|innerHTML|XMLHttpRequest|eval\(", script)
    assert "\r" not in script


def test_the_same_document_is_the_same_page() -> None:
    assert to_html(document()) == to_html(document())


def test_long_names_may_be_broken_after_their_words_and_read_the_same() -> None:
    html = to_html(document("a/b=`c_d`"))
    assert "a/<wbr>b=<code>c_<wbr>d</code>" in html
    assert Outline(html).texts("th")[2] == "a/b=c_d"
