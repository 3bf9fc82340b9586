"""Which characters the model sees at which step."""

from __future__ import annotations

import torch

from switch_lm.training.data import TrainingBatches, derive_seed

TEXT = torch.arange(1003)  # every character is its own place in the text


def batches(**changes: int) -> TrainingBatches:
    return TrainingBatches(TEXT, **({"batch_size": 4, "context_length": 10, "seed": 3} | changes))


def test_a_batch_is_a_function_of_seed_and_number_alone() -> None:
    forwards = [batches()[n].ids for n in range(40)]
    one = batches()
    backwards = [one[n].ids for n in reversed(range(40))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(batches(seed=4)[0].ids, forwards[0])


def test_targets_are_the_characters_that_follow() -> None:
    batch = batches()[5]
    assert batch.ids.shape == batch.targets.shape == (4, 10)
    assert torch.equal(batch.targets, batch.ids + 1)


def test_one_pass_meets_every_window_once() -> None:
    data = batches(batch_size=1)
    starts = sorted(int(data[n].ids[0, 0]) for n in range(data.windows_per_pass))
    assert starts == list(range(starts[0], starts[0] + 10 * data.windows_per_pass, 10))
    assert 0 <= starts[0] < 10


def test_ranks_share_out_the_windows_of_a_step() -> None:
    both = batches(batch_size=8)[2].ids
    ranks = [batches(batch_size=8, rank=r, num_ranks=2)[2].ids for r in (0, 1)]
    assert torch.equal(torch.cat(ranks), both)


def test_a_window_ends_within_the_text_whatever_the_offset() -> None:
    short = torch.arange(25)
    data = TrainingBatches(short, batch_size=1, context_length=10, seed=0)
    assert max(int(data[n].targets.max()) for n in range(50)) <= 24


def test_neighbouring_numbers_give_unlike_seeds() -> None:
    seeds = {derive_seed(s, n) for s in range(20) for n in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
