"""What counting reaches on a split, loss and accuracy: unigram, bigram, and interpolated Kneser-Ney of order 5."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from switch_lm.text.encoding import Ids

Grams: TypeAlias = NDArray[np.uint64]  # n-grams, the last character in the lowest bits
Numbers: TypeAlias = NDArray[np.float64]

BITS, ORDER = 12, 5  # of a character in an n-gram of 64 bits; characters of the longest
MOST_DISTINCT = 4000  # which leaves codes for what stands before a text
MOST_PROBABILITIES = 10**8  # each prediction has one for each distinct character: half a minute
PIECE = 1 << 20  # characters or probabilities at a time, which bounds the memory
SHIFT, LAST = np.uint64(BITS), np.uint64((1 << BITS) - 1)


class Level(NamedTuple):
    """Of one order: p(w|h) = share(hw) + rest(h) p(w|h without its first character)."""

    gram_G: Grams  # distinct, in rising order, as are the histories
    share_G: Numbers
    history_H: Grams
    begin_H: NDArray[np.intp]  # the first gram of each history
    kinds_H: NDArray[np.intp]  # how many grams it has
    rest_H: Numbers


def baselines(training_ids: Ids, validation_ids: Ids, *, vocab_size: int) -> dict[str, dict[str, float]] | None:
    """The `score` of each baseline by its name; None for too many characters."""
    if vocab_size > MOST_DISTINCT or vocab_size * len(validation_ids) > MOST_PROBABILITIES:
        return None
    levels = {
        "unigram": most_likely(training_ids, order=1, vocab_size=vocab_size),
        "bigram": most_likely(training_ids, order=2, vocab_size=vocab_size),
        "kneser_ney": kneser_ney(training_ids, order=ORDER, vocab_size=vocab_size),
    }
    return {name: score(one, validation_ids, vocab_size=vocab_size) for name, one in levels.items()}


def most_likely(ids: Ids, *, order: int, vocab_size: int) -> list[Level]:
    """Relative frequencies, smoothed by one more count per history that is spread like the next lower order.

    Source: MacKay and Peto 1995, "A hierarchical Dirichlet language model", with a weight of 1.
    """
    return [_level(*counted(ids, order=n, before=vocab_size), discount=None) for n in range(1, order + 1)]


def kneser_ney(ids: Ids, *, order: int, vocab_size: int) -> list[Level]:
    """Interpolated Kneser-Ney, with a discount of n1 / (n1 + 2 n2) per order; 0.5 where no n-gram counts 1, or 2.

    A lower order counts distinct characters before an n-gram, the start of the text among them, not occurrences.
    Sources: Kneser and Ney 1995; Chen and Goodman 1999, "An empirical study of smoothing techniques".
    """
    gram_G, count_G = counted(ids, order=order, before=vocab_size)
    levels: list[Level] = []
    for n in range(order - 1, -1, -1):
        once, twice = (np.count_nonzero(count_G == count) for count in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        levels.insert(0, _level(gram_G, count_G, discount=discount))
        gram_G, count_G = np.unique(gram_G & np.uint64((1 << n * BITS) - 1), return_counts=True)
    return levels


def _level(gram_G: Grams, count_G: Numbers, *, discount: float | None) -> Level:
    """Absolute discounting. None: none, but one count per history for the lower order."""
    history_H, begin_H, kinds_H = np.unique(gram_G >> SHIFT, return_index=True, return_counts=True)
    total_H = np.add.reduceat(count_G, begin_H) + (discount is None)
    share_G = (count_G - (discount or 0.0)) / np.repeat(total_H, kinds_H)
    spared_H = np.ones(len(kinds_H)) if discount is None else discount * kinds_H
    return Level(gram_G, share_G, history_H, begin_H, kinds_H, spared_H / total_H)


def probabilities(levels: Sequence[Level], history_N: Grams, *, vocab_size: int) -> Numbers:
    """p(w|h) of each character w after each history, (N, V); below the lowest level all are equally probable."""
    prob_NV = np.full((len(history_N), vocab_size), 1.0 / vocab_size)
    for n, level in enumerate(levels):
        wanted_N = history_N & np.uint64((1 << n * BITS) - 1)
        at_N = np.searchsorted(level.history_H, wanted_N)
        known_K = np.flatnonzero(level.history_H.take(at_N, mode="clip") == wanted_N)
        at_K = at_N[known_K]
        kinds_K = level.kinds_H[at_K]
        gram_M = np.arange(kinds_K.sum()) + np.repeat(level.begin_H[at_K] - kinds_K.cumsum() + kinds_K, kinds_K)
        prob_NV[known_K] *= level.rest_H[at_K, None]
        prob_NV[np.repeat(known_K, kinds_K), level.gram_G[gram_M] & LAST] += level.share_G[gram_M]
    return prob_NV


def score(levels: Sequence[Level], ids: Ids, *, vocab_size: int) -> dict[str, float]:
    """Of each character of a split but the first, after what stands before it there.

    `top_1`, `top_5`: how often it is the most probable one, or among the five; of equals the smaller id is first.
    """
    gram_G, count_G = counted(ids, order=len(levels), before=vocab_size + 1, first=1)
    sum_3, rows = np.zeros(3), max(1, PIECE // vocab_size)
    for begin in range(0, len(gram_G), rows):
        gram_P = gram_G[begin : begin + rows]
        history_H, row_P = np.unique(gram_P >> SHIFT, return_inverse=True)
        id_P1 = (gram_P & LAST).astype(np.intp)[:, None]
        prob_PV = probabilities(levels, history_H, vocab_size=vocab_size)[row_P]
        prob_P1 = np.take_along_axis(prob_PV, id_P1, axis=1)
        first_PV = (prob_PV > prob_P1) | ((prob_PV == prob_P1) & (np.arange(vocab_size) < id_P1))
        rank_P = np.count_nonzero(first_PV, axis=1)
        sum_3 += np.stack([-np.log(prob_P1[:, 0]), rank_P < 1, rank_P < 5]) @ count_G[begin : begin + rows]
    loss, top_1, top_5 = (sum_3 / (len(ids) - 1)).tolist()
    bits = loss / math.log(2)
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_character": bits, "top_1": top_1, "top_5": top_5}


def counted(ids: Ids, *, order: int, before: int, first: int = 0) -> tuple[Grams, Numbers]:
    """Distinct n-grams in rising order, and how many of the ids from number `first` on end each.

    `before` stands for each character before the text.
    """
    padded = np.concatenate([np.full(order - 1, before, dtype=np.int16), ids])
    place_O, pieces = np.uint64(1) << (SHIFT * np.arange(order, dtype=np.uint64)[::-1]), []
    for begin in range(first, len(ids), PIECE):
        window_NO = sliding_window_view(padded[begin : begin + PIECE + order - 1].astype(np.uint64), order)
        pieces.append(np.unique(window_NO @ place_O, return_counts=True))
    gram_M, count_M = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    gram_G, of_M = np.unique(gram_M, return_inverse=True)
    return gram_G, np.bincount(of_M, weights=count_M).astype(np.float64)
