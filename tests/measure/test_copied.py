"""What is copied from a training text: the longest run and the share of 20-grams, as Python's `in` finds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switch_lm.measure import copied
from switch_lm.measure.copied import longest_run, share_copied
from switch_lm.text.encoding import Ids


def ids_of(text: str) -> Ids:
    return np.array([ord(character) for character in text], dtype=np.int16)


def rows_of(*texts: str) -> Ids:
    return np.stack([ids_of(text) for text in texts])


@settings(deadline=None, max_examples=150)
@given(
    training=st.text("ab", max_size=60),
    parts=st.lists(
        st.one_of(st.text("abc", max_size=5), st.tuples(st.integers(0, 60), st.integers(0, 60))), max_size=4
    ),
    piece=st.integers(1, 70),
)
def test_what_is_copied_is_what_the_training_text_contains(
    training: str, parts: list[str | tuple[int, int]], piece: int
) -> None:
    text = "".join(part if isinstance(part, str) else training[slice(*part)] for part in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copied, "PIECE", piece)  # nothing may depend on where a piece ends
        patch.setattr(copied, "LENGTH", 4)
        run = "".join(map(chr, longest_run(rows_of(text, text[::-1]), ids_of(training))))
        share = share_copied(rows_of(text, text[::-1]), ids_of(training))
    both = (text, text[::-1])
    runs = [one[i:j] for one in both for i in range(len(one)) for j in range(i, len(one) + 1) if one[i:j] in training]
    assert run in training and (run in both[0] or run in both[1]) and len(run) == max(map(len, runs), default=0)
    grams = [one[i : i + 4] in training for one in both for i in range(len(one) - 3)]
    assert share == (sum(grams) / len(grams) if grams else None)


def test_20_grams_are_counted() -> None:
    training = "".join(map(chr, range(100, 200)))
    assert share_copied(rows_of(training[30:60] + "?" * 20), ids_of(training)) == 11 / 31  # 11 of them lie in the copy
    assert share_copied(rows_of(training[:19]), ids_of(training)) is None
