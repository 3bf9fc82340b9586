"""A text from a trained model with all that is known of each character: how likely it was, and who processed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from switch_lm.generation.sampling import START, Draw, draws, probabilities
from switch_lm.pages.coloured_text import Odds

if TYPE_CHECKING:  # as in writing
    from switch_lm.model.transformer import SwitchLM
    from switch_lm.routers.routing import Routing
    from switch_lm.text.vocabulary import Vocabulary

NUM_ALTERNATIVES = 3


@dataclass(frozen=True)
class Choice:
    """What one Switch layer decided for a character."""

    expert: int  # the first, where there are several
    gate: float
    second: int  # the most probable of the others, or NOBODY
    second_probability: float


@dataclass(frozen=True)
class Traced:
    """One character of the prompt or of the text.

    Its `choices` are those of the pass in which the model first read it; its `odds` come from the pass before that.
    """

    character: str
    choices: tuple[Choice, ...] | None  # of each Switch layer; None: the prompt was too long, and it was not read
    odds: Odds | None  # None: it is the prompt's


def trace(
    model: SwitchLM,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    length: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[Traced]:
    """The prompt and the characters that `generate` puts after it, each as soon as it has been read."""
    drawn = draws(
        model, vocabulary, prompt, length=length + 1, temperature=temperature, top_k=top_k, seed=seed
    )  # one more than asked: the last is read, too
    known = _trace(drawn, vocabulary, prompt or START, temperature=temperature, top_k=top_k)
    return islice(known, 0 if prompt else len(START), None)


def _trace(
    drawn: Iterator[Draw], vocabulary: Vocabulary, prompt: str, *, temperature: float, top_k: int | None
) -> Iterator[Traced]:
    waiting: list[tuple[str, Odds | None]] = [(character, None) for character in prompt]
    for draw in drawn:
        unread = len(waiting) - draw.new
        choices = [None] * unread + choices_of(draw.reading.routings, last=draw.new)
        for (character, odds), choice in zip(waiting, choices, strict=True):
            yield Traced(character, choice, odds)
        odds = odds_of(draw, vocabulary, temperature=temperature, top_k=top_k)
        waiting = [(vocabulary.characters[draw.id], odds)]


def choices_of(routings: tuple[Routing, ...], *, last: int) -> list[tuple[Choice, ...]]:
    """What each Switch layer decided for each of the `last` tokens."""
    layers = [choices_in(routing, last=last) for routing in routings]
    return [tuple(layer[t] for layer in layers) for t in range(last)]


def choices_in(routing: Routing, *, last: int) -> list[Choice]:
    from switch_lm.measure.metrics import first_choice

    found = first_choice(routing)
    columns = (found.expert_T, found.gate_T, found.second_T, found.second_probability_T)
    return [Choice(*row) for row in zip(*(column[-last:].tolist() for column in columns), strict=True)]


def odds_of(draw: Draw, vocabulary: Vocabulary, *, temperature: float, top_k: int | None) -> Odds:
    """How likely the character was, and the likeliest others; at temperature 0, where it was certain, as at 1."""
    heat, most = (1.0, None) if temperature == 0.0 else (temperature, top_k)
    probs_K, id_K = probabilities(draw.reading.logits_V, temperature=heat, top_k=most)
    likeliest = zip(id_K[: NUM_ALTERNATIVES + 1].tolist(), probs_K[: NUM_ALTERNATIVES + 1].tolist(), strict=True)
    others = [(vocabulary.characters[i], p) for i, p in likeliest if i != draw.id and p > 0.0]
    return Odds(float(probs_K[id_K == draw.id]), tuple(others[:NUM_ALTERNATIVES]))
