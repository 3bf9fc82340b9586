"""Baselines of counts: probabilities as a slow dictionary gives them, closed forms, and what is done without counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switch_lm.measure import ngrams
from switch_lm.measure.ngrams import Level, baselines, kneser_ney, most_likely, probabilities, score

Probability = Callable[[int, tuple[int, ...]], Fraction]
TEXTS = st.integers(1, 4).flatmap(
    lambda v: st.tuples(st.just(v), *2 * [st.lists(st.integers(0, v - 1), min_size=2, max_size=40)])
)


def oracle_most_likely(ids: Sequence[int], order: int, vocab_size: int) -> Probability:
    """(count(hw) + p(w|h')) / (count(h) + 1), where count(h) is how often something follows h."""
    padded = [vocab_size] * (order - 1) + list(ids)
    count = Counter(
        tuple(padded[i + 1 - n : i + 1]) for i in range(order - 1, len(padded)) for n in range(1, order + 1)
    )

    def p(w: int, h: tuple[int, ...], n: int = order) -> Fraction:
        if n == 0:
            return Fraction(1, vocab_size)
        h = h[len(h) - n + 1 :]
        followed = sum(count[(*h, v)] for v in range(vocab_size))
        return (count[(*h, w)] + p(w, h, n - 1)) / (followed + 1)

    return p


def oracle_kneser_ney(ids: Sequence[int], order: int, vocab_size: int) -> Probability:
    """By dictionaries, from the definitions: below the highest order a count is of distinct characters before."""
    padded = [vocab_size] * (order - 1) + list(ids)
    counts: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    counts[order] = Counter(tuple(padded[i : i + order]) for i in range(len(ids)))
    for n in range(order - 1, 0, -1):
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for first, *rest in counts[n + 1]:
            before[tuple(rest)].add(first)
        counts[n] = Counter({gram: len(some) for gram, some in before.items()})

    def p(w: int, h: tuple[int, ...], n: int = order) -> Fraction:
        if n == 0:
            return Fraction(1, vocab_size)
        h, count = h[len(h) - n + 1 :], counts[n]
        once, twice = (sum(c == k for c in count.values()) for k in (1, 2))
        discount = Fraction(once, once + 2 * twice) if once and twice else Fraction(1, 2)
        following = [count[(*h, v)] for v in range(vocab_size) if (*h, v) in count]
        if not following:
            return p(w, h, n - 1)
        kept = max(count.get((*h, w), 0) - discount, Fraction(0))
        return (kept + discount * len(following) * p(w, h, n - 1)) / sum(following)

    return p


@pytest.mark.parametrize(
    ("make", "oracle", "order"),
    [(most_likely, oracle_most_likely, 1), (most_likely, oracle_most_likely, 2), (kneser_ney, oracle_kneser_ney, 5)],
)
@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, piece=st.integers(1, 50))
def test_probabilities_are_those_of_a_slow_dictionary_and_sum_to_1(
    make: Callable[..., list[Level]],
    oracle: Callable[..., Probability],
    order: int,
    texts: tuple[int, list[int], list[int]],
    piece: int,
) -> None:
    vocab_size, training, validation = texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PIECE", piece)  # nothing may depend on where a piece ends
        levels = make(np.array(training, dtype=np.uint8), order=order, vocab_size=vocab_size)
        measured = score(levels, np.array(validation, dtype=np.uint8), vocab_size=vocab_size)
    p = oracle(training, order, vocab_size)
    padded = [vocab_size + 1] * order + validation  # before a split stands nothing that was seen
    history_NO = [tuple(padded[i + 1 : i + order]) for i in range(1, len(validation))]
    packed_N = np.array([sum(c << 12 * i for i, c in enumerate(reversed(h))) for h in history_NO], dtype=np.uint64)
    prob_NV = probabilities(levels, packed_N, vocab_size=vocab_size)
    expected_NV = np.array([[float(p(w, h)) for w in range(vocab_size)] for h in history_NO])
    np.testing.assert_allclose(prob_NV, expected_NV, rtol=1e-9)
    np.testing.assert_allclose(prob_NV.sum(axis=1), 1.0, rtol=1e-9)
    assert (prob_NV > 0).all()
    losses = [-math.log(p(w, h)) for w, h in zip(validation[1:], history_NO, strict=True)]
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9, abs=1e-12)
    order_NV = np.argsort(-prob_NV, axis=1, kind="stable")  # of equals the smaller id is first
    for name, k in (("top_1", 1), ("top_5", 5)):
        hits = [w in order_V[:k] for w, order_V in zip(validation[1:], order_NV, strict=True)]
        assert measured[name] == pytest.approx(sum(hits) / len(hits))


def test_the_baselines_of_a_text_of_independent_characters_are_its_entropy() -> None:
    """3 : 1, drawn: nothing helps to predict it, so that all are near ln 4 - 0.75 ln 3 and right in three of four."""
    ids = (np.random.default_rng(0).random(400_000) < 0.25).astype(np.uint8)
    result = baselines(ids[:360_000], ids[360_000:], vocab_size=2)
    assert result is not None
    for one in result.values():
        assert one["loss"] == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=0.01)
        assert one["bits_per_character"] == pytest.approx(one["loss"] / math.log(2))
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
        assert one["top_1"] == pytest.approx(0.75, abs=0.01) and one["top_5"] == 1.0


@pytest.mark.parametrize("vocab_size", [ngrams.MOST_DISTINCT, ngrams.MOST_DISTINCT + 1])
def test_characters_are_counted_up_to_4000_distinct_ones(vocab_size: int) -> None:
    """A cycle through all: after its first time a bigram knows the next character, and a unigram nothing."""
    ids = np.tile(np.arange(vocab_size, dtype=np.int16), 3)
    result = baselines(ids, ids[:200], vocab_size=vocab_size)
    if vocab_size > 4000:
        assert result is None
        return
    assert result is not None and result["unigram"]["loss"] == pytest.approx(math.log(4000), rel=1e-6)
    assert result["bigram"]["loss"] == pytest.approx(-math.log((3 + 1 / 4000) / 4), rel=1e-6)
    assert result["bigram"]["top_1"] == result["kneser_ney"]["top_1"] == 1.0
