"""A split is counted once, whatever its length."""

from __future__ import annotations

import pytest
import torch

from switch_lm.text.windows import EvaluationBatches


def test_tiny_shakespeare_s_validation_split_holds_111_539_predictions() -> None:
    batches = EvaluationBatches(torch.arange(111_540), context_length=128, batch_size=64)
    assert sum(target_BS.numel() for _, target_BS in batches) == 111_539


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 10, 16, 17, 18, 50])
def test_each_character_but_the_first_is_predicted_once_and_in_order(length: int, batch_size: int) -> None:
    batches = list(EvaluationBatches(torch.arange(length), context_length=8, batch_size=batch_size))
    targets = [int(i) for _, target_BS in batches for i in target_BS.flatten()]
    assert targets == list(range(1, length))
    assert all(torch.equal(ids_BS + 1, target_BS) for ids_BS, target_BS in batches)


def test_whole_windows_fill_batches_and_the_last_short_one_stands_alone() -> None:
    batches = EvaluationBatches(torch.arange(8 * 5 + 4), context_length=8, batch_size=2)
    assert [tuple(ids_BS.shape) for ids_BS, _ in batches] == [(2, 8), (2, 8), (1, 8), (1, 3)]


def test_no_window_is_empty_where_the_last_whole_one_ends_the_split() -> None:
    batches = EvaluationBatches(torch.arange(8 * 2 + 1), context_length=8, batch_size=2)
    assert [tuple(ids_BS.shape) for ids_BS, _ in batches] == [(2, 8)]
