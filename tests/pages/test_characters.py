"""Every character is seen, none commands a terminal or a page, and none reorders the sentence around it."""

from __future__ import annotations

import pytest

from switch_lm.pages.characters import harmless, isolated, visible
from switch_lm.pages.document import Cell, Code, Document, Section, Table, Text
from switch_lm.pages.markdown import to_markdown
from switch_lm.pages.page import to_html
from switch_lm.pages.plots import plain
from switch_lm.training.callbacks.dashboard import _verbatim

COMMANDS = "\x00\x07\x08\r\x1b\x7f\x85\xad\u061c\u200b\u200f\u2028\u202e\u2066\ufeff\ufffe\udc80\U000e0001"


@pytest.mark.parametrize("character", COMMANDS, ids=ascii)
def test_a_command_is_shown_by_its_code(character: str) -> None:
    code = ascii(character)[1:-1]
    assert visible(character) == code and harmless(f"a{character}b") == f"a{code}b"


@pytest.mark.parametrize("text", ["a\tb\n", "é e\u0301", "\u00a0\u3000", "شلوم", "👨\u200d👩 🏳\ufe0f", "\ue000"])
def test_other_characters_are_left_as_they_are(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("character", "name"),
    [("\u0301", "◌\u0301"), ("\u0903", "◌\u0903"), ("\u200d", "\\u200d"), ("\ufe0f", "\\ufe0f"), ("\u3164", "\\u3164"),
     ("\u00a0", "\\xa0"), ("◌", "\\u25cc"), ("␣", "\\u2423"), (" ", "␣"), ("é", "é")],
    ids=ascii,
)  # fmt: skip
def test_one_character_has_a_name_that_is_seen_and_that_no_other_has(character: str, name: str) -> None:
    assert visible(character) == name


def test_each_run_from_right_to_left_is_isolated_and_not_what_stands_between_two() -> None:
    assert isolated("'א' 12%, 'ב' 10%", "<", ">") == "'<א>' 12%, '<ב>' 10%"
    assert isolated("שלום עולם 12, abc", "<", ">") == "<שלום עולם> 12, abc"
    assert isolated("abc 12") == "abc 12"


def test_in_a_page_and_in_markdown_names_are_visible_and_isolated() -> None:
    table = Table("T", ("run", "loss"), ((Cell("א 1"), Cell("\x1b[1m")),))
    document = Document("`א` 12\x00", "ב\u202e 13", (Section("\x07", (Text("`א` 12"), table, Code("x\x1b\ufffe"))),))
    html, markdown = to_html(document), to_markdown(document, pictures="pictures")
    assert "<h1><code><bdi>א</bdi></code> 12\\x00</h1>" in "".join(map(str.strip, html.splitlines(keepends=False)))
    assert "<bdi>ב</bdi>\\u202e 13" in html and "x\\x1b\\ufffe</pre>" in html and "<title>א 12</title>" in html
    assert "# \u2068`א`\u2069 12\\\\x00\n\n\u2068ב\u2069\\\\u202e 13\n" in markdown
    assert "| \u2068א\u2069 1 | \\\\x1b\\[1m |" in markdown and "x\\x1b\\ufffe\n```" in markdown
    assert harmless(html) == html and plain("a\x1b\u202eb\x9b") == "a \\u202eb\\x9b"


def test_a_board_shows_a_text_as_it_is() -> None:
    assert _verbatim("a\x0b\u2028\r\n\n# <b>\x1b") == "    a\\x0b\\u2028\\r\n    \n    # <b>\\x1b"
