"""How much of a choice a label explains: closed forms, chance, and the interval of what is beyond it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from switch_lm.stats.information import Explained, entropies_without, entropy, explained, shifted_within
from switch_lm.stats.intervals import Estimate


def drawn(seed: int, high: int, tokens: int = 2000) -> Tensor:
    return torch.randint(high, (tokens,), generator=torch.Generator().manual_seed(seed))


def of_text(choice_T: Tensor, label_T: Tensor, **options: Any) -> Explained:
    """As 20 windows."""
    options = {name: x.view(20, -1) if isinstance(x, Tensor) else x for name, x in options.items()}
    return explained(choice_T.view(20, -1), label_T.view(20, -1), label="it", **options)


def test_entropy_of_an_even_joint_distribution_is_the_log_of_its_cells() -> None:
    a_T, b_T = torch.arange(12) % 3, torch.arange(12) % 4
    assert entropy(a_T) == pytest.approx(math.log(3))
    assert entropy(a_T, b_T) == pytest.approx(math.log(12))


@pytest.mark.parametrize("high", [40, 3_000_000], ids=["a table", "far more pairs than tokens"])
def test_the_entropy_of_many_labels_is_that_of_a_count_of_their_tuples(high: int) -> None:
    label_T, given_T, choice_T = drawn(7, 40) * (high // 40), drawn(8, high), drawn(9, 4)
    counts = Counter(zip(choice_T.tolist(), label_T.tolist(), given_T.tolist(), strict=True))
    expected = -sum(n / 2000 * math.log(n / 2000) for n in counts.values())
    assert entropy(choice_T, label_T, given_T) == pytest.approx(expected, abs=1e-12)
    assert entropy(given_T, label_T, choice_T) == pytest.approx(expected, abs=1e-12)


def test_a_label_that_determines_the_choice_explains_all_and_an_even_one_nothing() -> None:
    choice_T = drawn(0, 4)
    assert of_text(choice_T, 3 - choice_T).share == pytest.approx(1.0)
    even_T = torch.arange(2000)
    assert of_text(even_T % 4, even_T // 4 % 5).share == pytest.approx(0.0, abs=1e-12)


def test_half_of_a_choice_of_four_is_explained_by_one_of_its_two_bits() -> None:
    choice_T = torch.arange(4).repeat(500)[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    assert of_text(choice_T, choice_T // 2).share == pytest.approx(0.5)
    beyond = of_text(choice_T, choice_T, given_BS=choice_T // 2, given="bit")
    assert beyond.share == pytest.approx(1.0) and beyond.beyond_chance(100)


def test_with_a_single_expert_there_is_nothing_to_explain() -> None:
    result = of_text(torch.zeros(60, dtype=torch.long), drawn(1, 5, 60))
    assert (result.share, result.chance, result.beyond) == (0.0, 0.0, Estimate(0.0, 20))
    assert not result.beyond_chance(1)


def test_entropies_without_a_group_are_those_of_the_other_tokens() -> None:
    group_T, a_T, b_T = torch.arange(60) // 17, drawn(1, 3, 60), drawn(2, 5, 60)
    expected = [entropy(a_T[group_T != group], b_T[group_T != group]) for group in range(4)]
    assert entropies_without(group_T, a_T, b_T).tolist() == pytest.approx(expected)


def test_what_is_explained_beyond_chance_has_the_interval_of_windows_left_out_in_groups() -> None:
    """64 windows, of which half follow the label and the others ignore it: two windows are left out at a time."""
    label_BS, follows_B1 = drawn(3, 4, 64 * 30).view(64, 30), (torch.arange(64) % 64 < 32)[:, None]
    choice_BS = torch.where(follows_B1, label_BS, drawn(4, 4, 64 * 30).view(64, 30))
    result, groups = explained(choice_BS, label_BS, label="it"), torch.arange(64) // 2
    without = torch.tensor([share_of(choice_BS[groups != g], label_BS[groups != g]) for g in range(32)])
    error = math.sqrt(31 / 32 * (without - without.mean()).square().sum())
    assert result.beyond.mean == pytest.approx(result.share - result.chance)
    assert result.beyond == Estimate(result.beyond.mean, 32, result.beyond.error, 31.0)
    assert result.beyond.error == pytest.approx(error)


def share_of(choice_BS: Tensor, label_BS: Tensor) -> float:
    choice_T, label_T = choice_BS.flatten(), label_BS.flatten()
    return (entropy(choice_T) + entropy(label_T) - entropy(choice_T, label_T)) / entropy(choice_T)


def test_a_label_that_explains_all_in_every_window_has_the_deviation_of_chance_not_a_width_of_zero() -> None:
    choice_T = drawn(0, 4)
    result = of_text(choice_T, choice_T)
    half = result.beyond.half()
    assert half is not None and 1e-4 < half < 0.01 and result.beyond_chance(100)
    assert str(result) == f"it {result.beyond.mean:.1%} ± {half:.1%}"


def test_few_windows_give_no_interval_and_nothing_stands_out() -> None:
    choice_BS = drawn(0, 4, 210).view(7, 30)
    result = explained(choice_BS, choice_BS, label="it")
    assert result.beyond.error is None and not result.beyond_chance(1)
    assert "(7 groups: no interval)" in str(result)


def test_labels_are_shifted_in_a_circle_within_their_group_and_never_stay() -> None:
    group_T = drawn(2, 3, 60)
    for source_T in shifted_within(group_T, 20, torch.Generator().manual_seed(0)):
        assert torch.equal(source_T.sort().values, torch.arange(60))
        assert torch.equal(group_T[source_T], group_T)
        for group in range(3):
            token_N, source_N = torch.where(group_T == group)[0], source_T[group_T == group]
            offset = int((token_N == source_N[0]).nonzero())
            assert offset > 0 and torch.equal(source_N, token_N.roll(-offset))


def stands_out(seed: int, choice_T: Tensor, label_T: Tensor, **options: Any) -> bool:
    return of_text(choice_T, label_T, seed=seed, **options).beyond_chance(1)


def test_a_random_choice_stands_out_one_time_in_twenty_at_most() -> None:
    runs_T = drawn(3, 6, 200).repeat_interleave(10)  # labels that change slowly
    outcomes = [stands_out(seed, drawn(100 + seed, 4), runs_T) for seed in range(100)]
    assert sum(outcomes) <= 12


def in_runs(seed: int) -> Tensor:
    """Values that stay for 1 to 99 tokens."""
    return drawn(seed, 4, 200).repeat_interleave(drawn(seed + 1000, 99, 200) + 1)[:2000]


def test_runs_of_a_choice_beside_runs_of_a_label_are_not_called_a_discovery() -> None:
    """Labels drawn one by one would find something in every one of these."""
    runs = [(in_runs(s), in_runs(500 + s)) for s in range(40)]
    shuffled = [(choice_T, label_T[torch.randperm(2000)]) for choice_T, label_T in runs]
    assert sum(stands_out(0, *pair) for pair in runs) <= 6
    drawn_high = max(of_text(*pair).share for pair in shuffled)
    assert sum(of_text(*pair).share > drawn_high for pair in runs) == 40


def test_what_the_character_explains_is_not_attributed_to_a_label_that_depends_on_it() -> None:
    character_T = drawn(4, 8)
    label_T = (character_T + drawn(5, 3)) % 8  # depends on the character
    choice_T = torch.where(drawn(6, 10) < 7, character_T % 4, drawn(7, 4))  # depends on the character alone
    alone = of_text(choice_T, label_T)
    assert alone.share > 5 * alone.chance and alone.beyond_chance(100)
    beyond = [
        stands_out(s, torch.where(drawn(900 + s, 10) < 7, character_T % 4, drawn(300 + s, 4)), label_T,
                   given_BS=character_T, given="character")
        for s in range(40)
    ]  # fmt: skip
    assert sum(beyond) <= 6
