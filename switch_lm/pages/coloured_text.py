"""A text in which each character has the colour and the number of its expert: a part of a page, of any length."""

import base64
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from switch_lm.pages.characters import needs_a_base, visible

PAGE = 3000  # characters shown at a time
MOST_EXPERTS = 64  # of a layer that a key, a picture or a table shows
NOBODY = -1  # instead of an expert, where the model did not read, or where there is no second one
NONE = "none"  # what stands for the expert of a character that no expert takes
NAMES = {"\n": "line break", " ": "space", "\t": "tab"}
UNLIKELY = (  # 1 - probability, up to; and how that reads
    (0.5, "50% or more"), (0.8, "20 to 50%"), (0.95, "5 to 20%"), (0.99, "1 to 5%"), (1.0, "below 1%"),
)  # fmt: skip


@dataclass(frozen=True)
class LayerText:
    """What one Switch layer decided for each character.

    Of its experts the one with the largest gate counts. `expert` is `num_experts` where it has none, and NOBODY where
    the model did not read it.
    """

    label: str
    num_experts: int
    expert: Sequence[int]
    gate: Sequence[float]
    second: Sequence[int]  # the most probable of the other experts, or NOBODY
    second_probability: Sequence[float]
    number: Sequence[int] = ()  # how many experts it has; by default one


@dataclass(frozen=True)
class Odds:
    """How likely a character was when it was drawn, and the likeliest others, as pairs of character and probability."""

    probability: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ColouredText:
    """A text as a part of a document: `name` as in `coloured_text`; `caption` describes it."""

    name: str
    caption: str
    text: str
    layers: tuple[LayerText, ...]


def busiest(load_E: Sequence[float]) -> list[int]:
    """The experts of a layer that are shown: all, or of more than 64 those with the largest loads, these first."""
    every = range(len(load_E))
    return sorted(every, key=lambda e: -load_E[e])[:MOST_EXPERTS] if len(every) > MOST_EXPERTS else list(every)


def the_busiest(num_experts: int) -> str:
    """What is left out by `busiest`, for the end of a label."""
    return "" if num_experts <= MOST_EXPERTS else f" (the {MOST_EXPERTS} busiest of {num_experts:,}, in order)"


def coloured_text(
    name: str, text: str, layers: Sequence[LayerText], *, odds: Sequence[Odds | None] | None = None, first: int = 0
) -> str:
    """Safe HTML: the text, coloured by one layer at a time, which the reader chooses; it works in any page of `render`.

    `name` must differ from that of any other part of the page. With `odds` the text can be coloured by them as well;
    characters without odds are the prompt. `first`: the layer shown first.
    """
    from switch_lm.pages.templates import TEMPLATES  # jinja2: only where a page is written

    letters = set(text).union(*(letter for one in odds or () if one for letter, _ in one.alternatives))
    data: dict[str, Any] = {
        "text": text,
        "page": PAGE,
        "names": {c: NAMES.get(c) or visible(c) for c in sorted(letters) if visible(c) != c},
        "signs": {c: visible(c) for c in sorted(letters) if needs_a_base(c)},
        "views": [_layer_view(layer) for layer in layers],
    }
    if odds is not None:
        data["views"].append(_odds_view(odds))
        data["odds"] = [one and _numbers(one) for one in odds]
    return TEMPLATES.get_template("coloured_text.html.jinja").render(name=name, data=data, first=first)


def _layer_view(layer: LayerText) -> dict[str, Any]:
    experts, count = range(layer.num_experts), Counter(layer.expert)
    numbers = {n for n, e in zip(layer.number, layer.expert, strict=False) if e != NOBODY}
    varies = len(numbers) > 1 or 0 in numbers
    gets = "in which each has the largest gate" if max(numbers, default=1) > 1 else "that each processed"
    codes = len(experts) + varies  # the last one stands for no expert
    scale = max([1.0, *layer.gate])  # a byte for each gate
    view: dict[str, Any] = {
        "label": layer.label,
        "key": f"Experts of {layer.label}{the_busiest(len(experts))}, with the share of the text {gets}",
        "names": [*(f"expert {expert}" for expert in experts), *[NONE] * varies],
        "marks": [*map(str, experts), *["–"] * varies],
        "shown": [len(experts)] * varies + busiest([count[expert] for expert in experts]),
        "palette": "expert",
        "codes": _codes(layer.expert, codes),
        "gate": _bytes(round(255 * gate / scale) for gate in layer.gate),
        "second": _codes(layer.second, codes),
        "second_probability": _bytes(round(255 * p) for p in layer.second_probability),
    }
    if varies:
        without = count[len(experts)] / max(1, len(layer.expert) - count[NOBODY])
        view |= {"none": len(experts), "without": f"{without:.1%}", "number": _codes(layer.number, codes)}
    return view | {"scale": scale} if scale > 1.0 else view


def _odds_view(odds: Sequence[Odds | None]) -> dict[str, Any]:
    """Five classes, from likely to unlikely."""
    limits = [limit for limit, _ in UNLIKELY]
    return {
        "label": "probability",
        "key": "How likely each character was, with the share of the text",
        "names": [name for _, name in UNLIKELY],
        "marks": list("ABCDE"),
        "shown": list(range(len(UNLIKELY))),
        "palette": "odds",
        "codes": _codes(
            [NOBODY if one is None else bisect_left(limits, 1.0 - one.probability) for one in odds], len(UNLIKELY)
        ),
    }


def _numbers(odds: Odds) -> list[Any]:
    """[probability, character, probability, character, probability ...], each to three figures."""
    others = [part for character, p in odds.alternatives for part in (character, float(f"{p:.3g}"))]
    return [float(f"{odds.probability:.3g}"), *others]


def _bytes(values: Iterable[int]) -> str:
    return base64.b64encode(bytes(values)).decode()


def _codes(numbers: Sequence[int], count: int) -> str:
    """Numbers below `count`, or NOBODY: a signed byte for each, or as many as are needed, the lowest first."""
    size = next(letter for letter, bits in (("b", 7), ("h", 15), ("i", 31)) if count <= 2**bits)
    return base64.b64encode(struct.pack(f"<{len(numbers)}{size}", *numbers)).decode()
