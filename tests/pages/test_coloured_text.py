"""The coloured text as data: what the page's script reads is what was given, and no text can break out of it."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest

import switch_lm
from switch_lm.pages.coloured_text import NOBODY, PAGE, LayerText, Odds, coloured_text

PAGES = Path(switch_lm.__file__).parent / "pages"
EVIL = "</script><script>alert('&')</script><!--<img src=x onerror=alert(1)>\"\u2028\n"


# The colours as an eye without red, green or blue cones has them (Machado, Oliveira, Fernandes, 2009; severity 1).
SIGHTS = {
    "all cones": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
JUST_SEEN = 2.3  # a difference in CIELAB that is just noticed (Mahy, Van Eycken, Oosterlinck, 1994)


def layer(
    expert: tuple[int, ...], *, label: str = "layer 00", num_experts: int = 64, second: int = 1, gate: float = 0.5
) -> LayerText:
    n = len(expert)
    return LayerText(label, num_experts, expert, (gate,) * n, (second,) * n, (0.25,) * n)


def data_of(html: str) -> dict[str, Any]:
    """The one block that the script reads."""
    (block,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    data: dict[str, Any] = json.loads(block)
    return data


def lab(colour: str, sight: str) -> list[float]:
    """CIELAB coordinates of #rrggbb as that eye sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    rgb = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    red, green, blue = (max(0.0, sum(a * v for a, v in zip(row, rgb, strict=True))) for row in SIGHTS[sight])
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def unpacked(text: str) -> list[int]:
    return list(base64.b64decode(text))


def test_experts_and_gates_come_back_a_byte_each() -> None:
    html = coloured_text("a", "abc", [layer((0, 63, NOBODY), gate=1.0), layer((2, 1, 0), second=NOBODY, gate=0.2)])
    first, second = data_of(html)["views"]
    assert unpacked(first["codes"]) == [0, 63, 255]
    assert unpacked(first["gate"]) == [255, 255, 255]
    assert unpacked(first["second"]) == [1, 1, 1]
    assert unpacked(first["second_probability"]) == [64, 64, 64]
    assert unpacked(second["codes"]) == [2, 1, 0]
    assert unpacked(second["gate"]) == [51, 51, 51]
    assert unpacked(second["second"]) == [255, 255, 255]
    assert len(first["marks"]) == len(first["names"]) == 64


@pytest.mark.parametrize(
    ("num_experts", "size"), [(1, "b"), (65, "b"), (128, "b"), (129, "h"), (256, "h"), (257, "h"), (33_000, "i")]
)
def test_any_number_of_experts_comes_back_and_nobody_is_none_of_them(num_experts: int, size: str) -> None:
    experts = (NOBODY, 0, num_experts - 1)
    (view,) = data_of(coloured_text("a", "abc", [layer(experts, num_experts=num_experts, second=num_experts - 1)]))[
        "views"
    ]
    codes, second = (struct.unpack(f"<3{size}", base64.b64decode(view[key])) for key in ("codes", "second"))
    assert (codes, second) == (experts, (num_experts - 1,) * 3)


@pytest.mark.parametrize(("num_experts", "words"), [(64, ""), (257, " (the 64 busiest of 257, in order)")])
def test_the_key_has_the_64_busiest_experts_and_says_so(num_experts: int, words: str) -> None:
    html = coloured_text("a", "abc", [layer((63, 63, 2), num_experts=num_experts)])
    (view,) = data_of(html)["views"]
    assert view["key"] == f"Experts of layer 00{words}, with the share of the text that each processed"
    assert len(view["shown"]) == 64 and view["shown"][:2] == ([63, 2] if words else [0, 1])


@pytest.mark.parametrize(
    ("probability", "mark"),
    [
        (1.0, "A"), (0.5, "A"), (0.499, "B"), (0.2, "B"), (0.199, "C"), (0.05, "C"),
        (0.049, "D"), (0.01, "D"), (0.0099, "E"), (0.0, "E"),
    ],
)  # fmt: skip
def test_a_character_falls_into_the_class_of_its_probability(probability: float, mark: str) -> None:
    (view,) = data_of(coloured_text("a", "xy", [], odds=[None, Odds(probability)]))["views"]
    prompt, code = unpacked(view["codes"])
    assert prompt == 255
    assert view["marks"][code] == mark


def test_odds_come_with_their_alternatives_to_three_figures() -> None:
    odds = [None, Odds(0.123456, (("<", 0.000123456), ("b", 0.5)))]
    assert data_of(coloured_text("a", "xy", [], odds=odds))["odds"] == [None, [0.123, "<", 0.000123, "b", 0.5]]


def test_without_odds_none_are_offered() -> None:
    html = coloured_text("a", "x", [layer((0,))])
    assert "odds" not in data_of(html)
    assert [view["label"] for view in data_of(html)["views"]] == ["layer 00"]


def test_no_text_and_no_label_can_break_out() -> None:
    text = EVIL * 3
    html = coloured_text("a", text, [layer((0,) * len(text), label=EVIL)], odds=[Odds(1.0, ((EVIL, 0.1),))] * len(text))
    data = data_of(html)
    assert data["text"] == text
    assert data["views"][0]["label"] == EVIL
    assert html.count("<script") == html.count("</script>") == 1
    assert "<img" not in html and "<!--" not in html


def test_without_a_script_the_beginning_can_be_read_and_it_is_said_what_is_missing() -> None:
    text = "ab<c" * PAGE
    html = coloured_text("a", text, [layer((0,) * len(text))])
    (shown,) = re.findall(r'<div class="letters"[^>]*>(.*?)</div>', html, re.DOTALL)
    assert shown == ("ab&lt;c" * PAGE)[: len("ab&lt;c") * PAGE // 4]
    assert "need JavaScript" in html.split("<noscript>")[1].split("</noscript>")[0]
    assert re.search(r'<div class="controls" hidden>', html)


def test_the_layer_to_be_shown_first_is_the_one_checked() -> None:
    html = coloured_text("a", "x", [layer((0,), label=f"layer {i:02d}") for i in range(3)], first=2)
    assert re.findall(r'value="(\d)"( checked)?', html) == [("0", ""), ("1", ""), ("2", " checked")]


@pytest.mark.parametrize(("length", "hidden"), [(PAGE, True), (PAGE + 1, False)])
def test_only_a_text_of_several_pages_can_be_paged(length: int, hidden: bool) -> None:
    html = coloured_text("a", "x" * length, [layer((0,) * length)])
    assert ('aria-label="Part of the text" hidden>' in html) == hidden


def test_two_texts_of_a_page_share_no_name() -> None:
    names = [set(re.findall(r'(?:id|name)="([^"]+)"', coloured_text(n, "x", [layer((0,))]))) for n in ("a", "b")]
    assert names[0] and not names[0] & names[1]


def test_a_character_of_a_layer_takes_six_bytes_at_most() -> None:
    n = 100_000
    layers = [layer(tuple(i * k % 64 for i in range(n))) for k in (1, 3)]
    html = coloured_text("a", "To be, or " * (n // 10), layers)
    assert len(html) < 6 * 2 * n + n + 6 * PAGE


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_eight_experts_and_none_are_told_apart_whatever_ones_sight(theme: int, sight: str) -> None:
    pattern = r"\.expert-(?:\d|none) { --tile: light-dark\((#\w{6}), (#\w{6})\)"
    tiles = [pair[theme] for pair in re.findall(pattern, (PAGES / "page.html.jinja").read_text(encoding="utf-8"))]
    assert len(tiles) == 9
    apart = [math.dist(lab(a, sight), lab(b, sight)) for a, b in itertools.combinations(tiles, 2)]
    assert min(apart) > 4 * JUST_SEEN


def test_the_script_is_plain() -> None:
    script = (PAGES / "coloured_text.js").read_text(encoding="utf-8")
    assert not re.search(r"</script|\bimport\b|\bfetch\(|innerHTML|XMLHttpRequest|eval\(", script)
    assert len(script.splitlines()) <= 232
