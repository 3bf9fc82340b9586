"""Samples text and traces each character: the experts that processed it, and how probable it was."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from switch_lm.generation.sampling import Draw, Rule, draws
from switch_lm.measure.metrics import first_choice
from switch_lm.model.transformer import SwitchLM
from switch_lm.pages.coloured_text import Odds
from switch_lm.routers.routing import Routing
from switch_lm.text.vocabulary import Vocabulary

NUM_ALTERNATIVES = 3


@dataclass(frozen=True)
class Choice:
    """The decision of one Switch layer for a character."""

    expert: int  # of several, the one with the largest gate; of none, the number of experts
    gate: float
    second: int  # the most probable other expert, or NOBODY
    second_probability: float
    number: int = 1  # how many experts it has


@dataclass(frozen=True)
class Traced:
    """One character of the prompt or of the text.

    Its `choices` come from the pass in which the model first read it, its `odds` from the pass before.
    """

    character: str
    choices: tuple[Choice, ...] | None  # one per Switch layer; None: not read, since the prompt was too long
    odds: Odds | None  # None: part of the prompt


def trace(
    model: SwitchLM, vocabulary: Vocabulary, prompt: str, *, length: int, seed: int = 0, **how: Any
) -> Iterator[Traced]:
    """Yields the prompt and the characters that `generate` writes after it, each as soon as it has been read.

    `how`: as in `Rule`.
    """
    rule = Rule(**how)
    drawn = draws(model, vocabulary, prompt, rule, length=length + 1, seed=seed)  # one more, so that the last is read
    known = _trace(drawn, vocabulary, prompt or vocabulary.start, rule)
    return islice(known, 0 if prompt else len(vocabulary.start), None)


def _trace(drawn: Iterator[Draw], vocabulary: Vocabulary, prompt: str, rule: Rule) -> Iterator[Traced]:
    waiting: list[tuple[str, Odds | None]] = [(character, None) for character in prompt]
    for draw in drawn:
        unread = len(waiting) - draw.new
        choices = [None] * unread + _choices(draw.reading.routings, last=draw.new)
        for (character, odds), choice in zip(waiting, choices, strict=True):
            yield Traced(character, choice, odds)
        odds = odds_of(draw, vocabulary, rule)
        waiting = [(vocabulary.characters[draw.id], odds)]


def _choices(routings: tuple[Routing, ...], *, last: int) -> list[tuple[Choice, ...]]:
    """For each of the `last` tokens, the decisions of all Switch layers."""
    layers = [zip(*(column[-last:].tolist() for column in first_choice(routing)), strict=True) for routing in routings]
    by_token = zip(*layers, strict=True) if layers else [()] * last
    return [tuple(Choice(*facts) for facts in token) for token in by_token]


def odds_of(draw: Draw, vocabulary: Vocabulary, rule: Rule) -> Odds:
    """The probability of the character, and the most probable others; for temperature 0 those of temperature 1."""
    probs_K, id_K = (rule if rule.temperature > 0.0 else Rule(1.0)).probabilities(draw.reading.logits_V)
    likeliest = zip(id_K[: NUM_ALTERNATIVES + 1].tolist(), probs_K[: NUM_ALTERNATIVES + 1].tolist(), strict=True)
    others = [(vocabulary.characters[i], p) for i, p in likeliest if i != draw.id and p > 0.0]
    return Odds(float(probs_K[id_K == draw.id]), tuple(others[:NUM_ALTERNATIVES]))
