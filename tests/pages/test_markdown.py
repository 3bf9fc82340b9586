"""A document as Markdown: what a reader on GitHub sees is what the document says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from switch_lm.pages.document import (
    Beside,
    Bullets,
    Cell,
    Code,
    Document,
    Part,
    Picture,
    Section,
    Series,
    Table,
    Text,
    number,
    numeric_columns,
    pieces,
)
from switch_lm.pages.markdown import to_markdown


def body(*parts: Part) -> str:
    """The Markdown of the parts alone."""
    return to_markdown(Document("T", "L", (Section("S", parts),)), pictures="pictures").partition("## S\n\n")[2]


def table(*rows: Sequence[str | Cell], headings: tuple[str, ...] = ("run", "loss"), note: str = "") -> Table:
    cells = tuple(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table("Runs", headings, cells, note)


def test_title_lead_sections_and_parts_come_in_order_with_an_empty_line_between() -> None:
    section = Section("Loss", (Text("It\n falls."), Bullets(("a", "`b`")), Code("make test\n")))
    assert to_markdown(Document("Report", "Read on.", (section,)), pictures="pictures") == (
        "# Report\n\nRead on.\n\n## Loss\n\nIt falls.\n\n- a\n- `b`\n\n```text\nmake test\n```\n"
    )


def test_a_table_has_its_caption_above_its_note_below_and_its_numbers_to_the_right() -> None:
    assert body(table(("a", "1.5"), ("b", "-"), note="Nats.")) == (
        "**Runs**\n\n| run | loss |\n| --- | ---: |\n| a | 1.5 |\n| b | - |\n\n*Nats.*\n"
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"a\|b"),
        ("`a|b`", r"`a\|b`"),
        ("a\nb", "a b"),
        ("<script>", r"\<script\>"),
        ("2*3*4", r"2\*3\*4"),
        ("switch_lm _x_", r"switch_lm \_x\_"),
        ("a & b &amp;", "a &amp; b &amp;amp;"),
        ("$5 and $6", r"\$5 and \$6"),
        ("[a](b)", r"\[a\](b)"),
        ("C:\\x", "C:\\\\x"),
    ],
)
def test_what_github_takes_for_markup_is_escaped_in_a_table(text: str, written: str) -> None:
    assert f"| {written} | 1 |\n" in body(table((text, "1")))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("# no heading", r"\# no heading"),
        ("- no list", r"\- no list"),
        ("1. no list", r"1\. no list"),
        ("2 is", "2 is"),
    ],
)
def test_a_paragraph_stays_a_paragraph(text: str, written: str) -> None:
    assert body(Text(text)) == f"{written}\n"


def test_code_may_hold_a_fence() -> None:
    assert body(Code("```\nx\n```")) == "````text\n```\nx\n```\n````\n"


def test_a_picture_is_its_png_with_its_words_and_its_note() -> None:
    picture = Picture(
        "loss curve", "Loss", "It [falls]\nfast", "step", "loss", (Series("a", (1.0,), (2.0,)),), note="N"
    )
    text = "![It \\[falls\\] fast](pictures/loss%20curve.png)\n\n*N*\n"
    assert body(picture) == text
    assert body(Text("a"), Beside((picture, picture)), Text("b")) == f"a\n\n{text}\n{text}\nb\n"


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        (Cell("1,024"), 1024.0),
        (Cell("−0.5"), -0.5),
        (Cell("12%"), 12.0),
        (Cell("1e-3"), 1e-3),
        (Cell("1.7 ± 0.1", 1.7), 1.7),
        (Cell("nan"), None),
        (Cell("8x"), None),
        (Cell("-"), None),
        (Cell(""), None),
    ],
)
def test_a_cell_is_a_number_if_it_says_so_or_reads_like_one(cell: Cell, value: float | None) -> None:
    assert number(cell) == value


def test_a_column_is_numeric_if_it_holds_numbers_and_blanks_and_nothing_else() -> None:
    rows = (("a", "1", "", Cell("diverged", math.inf), "1"), ("b", "–", "-", "2", "x"))
    assert numeric_columns(table(*rows, headings=("t", "n", "blank", "sorted", "mixed"))) == (
        False,
        True,
        False,
        True,
        False,
    )


def test_backquotes_come_in_pairs_or_are_text() -> None:
    assert pieces("a `b` c`") == [("a ", False), ("b", True), (" c`", False)]
