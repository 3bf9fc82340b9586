"""A text in which each character has the colour and the number of its expert: a part of a page, of any length."""

from __future__ import annotations

import base64
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WITHOUT_SCRIPT = "Colours, numbers and all that follows the beginning of the text need JavaScript."
NUMBERS = "Marks where the colour changes"
PAGE = 3000  # characters shown at a time
NOBODY = -1  # where an expert is asked for and there is none
BLANK, FULL = 255, 255  # how a byte says nobody, and 1.0
UNLIKELY = ((0.5, "A"), (0.8, "B"), (0.95, "C"), (0.99, "D"), (1.0, "E"))  # 1 - probability, up to; and its letter
UNLIKELY_NAMES = ("50 % or more", "20 to 50 %", "5 to 20 %", "1 to 5 %", "below 1 %")


@dataclass(frozen=True)
class LayerText:
    """What one Switch layer decided for each character; `expert` is NOBODY where the model did not read it."""

    label: str
    num_experts: int  # at most 64
    expert: Sequence[int]
    gate: Sequence[float]
    second: Sequence[int]  # the most probable of the other experts, or NOBODY
    second_probability: Sequence[float]


@dataclass(frozen=True)
class Odds:
    """How likely a character was when it was drawn, and the likeliest others, as pairs of character and probability."""

    probability: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ColouredText:
    """A text as a part of a document: `name` as in `coloured_text`, `caption` what is to be seen."""

    name: str
    caption: str
    text: str
    layers: tuple[LayerText, ...]


def coloured_text(
    name: str, text: str, layers: Sequence[LayerText], *, odds: Sequence[Odds | None] | None = None, first: int = 0
) -> str:
    """Safe HTML: the text, coloured by one layer at a time, of which a reader chooses; works in any page of `render`.

    `name` must be unlike that of any other part of the page, and safe in an attribute. With `odds` the text can be
    coloured by them as well; those without are the prompt. `first`: the layer shown first.
    """
    views = [_layer_view(layer) for layer in layers]
    if odds is not None:
        views.append(_odds_view(odds))
    data: dict[str, Any] = {"text": text, "page": PAGE, "views": views}
    if odds is not None:
        data["odds"] = [one and _plain(one) for one in odds]
    shown = escape(text[:PAGE])
    return f"""<div class="coloured" id="{name}">
<div class="controls" hidden>
{_choice(name, [view["label"] for view in views], first)}
<p class="key-name" id="{name}-key"></p>
<div class="key" role="group" aria-labelledby="{name}-key"></div>
<label class="numbers"><input type="checkbox" checked>{NUMBERS}</label>
{_pager(len(text))}
</div>
<noscript><p class="note">{WITHOUT_SCRIPT}</p></noscript>
<div class="letters" aria-label="The text; arrow keys move through its characters">{shown}</div>
<output class="about" aria-live="polite"></output>
<script type="application/json">{_json(data)}</script>
</div>"""


def _layer_view(layer: LayerText) -> dict[str, Any]:
    experts = range(layer.num_experts)
    return {
        "label": layer.label,
        "key": f"Experts of {layer.label}, with the share of the text that each processed",
        "names": [f"expert {expert}" for expert in experts],
        "marks": [str(expert) for expert in experts],
        "palette": "expert",
        "codes": _bytes(_code(expert) for expert in layer.expert),
        "gate": _bytes(round(FULL * gate) for gate in layer.gate),
        "second": _bytes(_code(expert) for expert in layer.second),
        "second_probability": _bytes(round(FULL * p) for p in layer.second_probability),
    }


def _odds_view(odds: Sequence[Odds | None]) -> dict[str, Any]:
    """Five classes, from what was to be expected to what was not."""
    limits = [limit for limit, _ in UNLIKELY]
    return {
        "label": "probability",
        "key": "How likely each character was, with the share of the text",
        "names": list(UNLIKELY_NAMES),
        "marks": [letter for _, letter in UNLIKELY],
        "palette": "odds",
        "codes": _bytes(BLANK if one is None else bisect_left(limits, 1.0 - one.probability) for one in odds),
    }


def _plain(odds: Odds) -> list[Any]:
    """[probability, character, probability, character, probability ...], each to three figures."""
    others = [part for character, p in odds.alternatives for part in (character, _short(p))]
    return [_short(odds.probability), *others]


def _short(probability: float) -> float:
    return float(f"{probability:.3g}")


def _code(expert: int) -> int:
    return BLANK if expert == NOBODY else expert


def _bytes(values: Iterable[int]) -> str:
    return base64.b64encode(bytes(values)).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON in which nothing ends or begins an element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _choice(name: str, labels: Sequence[str], first: int) -> str:
    """Which layer the colours are of; no choice where there is but one."""
    radios = "".join(
        f'<label><input type="radio" name="{name}-view" value="{i}"{" checked" * (i == first)}>{escape(label)}</label>'
        for i, label in enumerate(labels)
    )
    return f'<fieldset class="views"{" hidden" * (len(labels) < 2)}><legend>Coloured by</legend>{radios}</fieldset>'


def _pager(length: int) -> str:
    """Of a text that fits one page none is shown."""
    return f"""<div class="pager" role="group" aria-label="Part of the text"{" hidden" * (length <= PAGE)}>
<button type="button" class="previous">Previous</button>
<span class="where"></span>
<button type="button" class="next">Next</button>
<label>Go to character <input type="number" class="go" min="1" max="{length}" inputmode="numeric"></label>
<label>Find <input type="search" class="find" enterkeyhint="search"></label>
</div>"""
