"""How much of a text is copied from the text that was trained on.

Runs are compared by hashes of 64 bits: the chance that one is wrongly found is below 1e-8, for 5 million characters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from switch_lm.text.encoding import Ids

LENGTH = 20  # of the n-grams whose share is reported
PIECE = 1 << 18  # characters at a time, which bounds the memory


def share_copied(ids_BS: Ids, training_ids: Ids) -> float | None:
    """The share of the 20-grams of some texts that occur in the training text; None if they have none."""
    return float(_occurs(ids_BS, training_ids, LENGTH).mean()) if ids_BS.shape[1] >= LENGTH else None


def longest_run(ids_BS: Ids, training_ids: Ids) -> Ids:
    """The longest run of some texts that occurs in the training text. Most pieces need one look: is one longer?"""
    run = ids_BS[0, :0]
    for begin in range(0, len(training_ids), PIECE):
        most, step = min(ids_BS.shape[1], len(training_ids) - begin), 1
        while len(run) < most:
            tried = min(len(run) + step, (len(run) + most + 1) // 2)
            if (place_K2 := np.argwhere(_occurs(ids_BS, training_ids[begin : begin + PIECE + tried - 1], tried))).size:
                row, start = place_K2[0]
                run, step = ids_BS[row, start : start + tried], 2 * step
            else:
                most = tried - 1
    return run


def _occurs(ids_BS: Ids, training_ids: Ids, length: int) -> NDArray[np.bool_]:
    """Whether each run of this length, by its start, stands anywhere in the training text."""
    distinct_M, of_BS = np.unique(hashes(ids_BS, length), return_inverse=True)
    found_M = np.zeros(distinct_M.shape, dtype=np.bool_)
    for begin in range(0, len(training_ids) - length + 1, PIECE):
        hash_N = hashes(training_ids[begin : begin + PIECE + length - 1], length)
        place_N = np.searchsorted(distinct_M, hash_N).clip(max=len(distinct_M) - 1)
        found_M[place_N[distinct_M[place_N] == hash_N]] = True
    return found_M[of_BS].reshape(len(ids_BS), -1)


def hashes(ids: Ids, length: int) -> NDArray[np.uint64]:
    """Of each run of this length along the last axis, by its start: made of those of two shorter runs that cover it.

    They are mixed by the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
    """
    hash_N, size = ids.astype(np.uint64), 1
    while size < length:
        step = min(size, length - size)
        hash_N = hash_N[..., :-step] * np.uint64(0x9E3779B97F4A7C15) + hash_N[..., step:]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            hash_N ^= hash_N >> np.uint64(shift)
            hash_N *= np.uint64(factor)
        size += step
    return hash_N
