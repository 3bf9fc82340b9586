"""The cards of experts: planted specialists are named, chance is not, and the experts of two models are matched."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from switch_lm.inspection.cards import Cards, ExpertCard, cards
from switch_lm.inspection.matching import matched
from switch_lm.probe.reading import Probe
from switch_lm.stats.intervals import t_quantile
from switch_lm.stats.shares import TIMES, class_shares, log_ratio
from switch_lm.text.classes import marks
from switch_lm.text.divisions import Division
from switch_lm.text.vocabulary import Vocabulary

SPEECHES = "KING:\nGo to, and say no more of it; I am\nthy lord.\n\nFOOL:\nAy, so thou art, and mad.\n\n" * 120
VOCABULARY = Vocabulary.of(SPEECHES)
PROBE = Probe.of(VOCABULARY.encode(SPEECHES), context_length=32, num_windows=64)
FOOL = SPEECHES.index("FOOL:")
FOOLS = torch.arange(len(SPEECHES)) % SPEECHES.index("KING:", FOOL) >= FOOL  # the speeches repeat
SPEAKERS = Division(("KING (it)", "FOOL (it)"), *[FOOLS.long().numpy()] * 2)
CLASSES = marks(PROBE.split_ids, PROBE.place_BS, VOCABULARY.characters, {"speaker": SPEAKERS})
TEXT = "".join(VOCABULARY.characters[i] for i in PROBE.ids_BS.flatten().tolist())


def at_random(experts: int, seed: int = 0) -> Tensor:
    return torch.randint(experts, PROBE.ids_BS.shape, generator=torch.Generator().manual_seed(seed))


def assigned(expert_BS: Tensor) -> list[tuple[int, int, float]]:
    """One layer's, with gates that fall along the text."""
    return [(place, e, 1.0 - place / 4096) for place, e in enumerate(expert_BS.flatten().tolist())]


def cards_of(*layers: Tensor, experts: int = 4, seed: int = 0) -> Cards:
    every, blocks = [assigned(x_BS) for x_BS in layers], range(len(layers))
    return cards(every, CLASSES, PROBE, VOCABULARY.characters, blocks=blocks, num_experts=experts, seed=seed)


def lines_of(result: Cards) -> list[list[str]]:
    return [[card.line(result.comparisons) for card in layer] for layer in result.layers]


@pytest.mark.parametrize(
    "name",
    ["capitals", "vowels", "consonants", "spaces", "line breaks", "punctuation", "word beginnings", "word ends",
     "speaker names", "after a space", "after a line break", "before a capital", "FOOL (it) speaking"],
)  # fmt: skip
def test_an_expert_of_one_class_is_named_by_it_and_what_it_takes_is_beside_chance(name: str) -> None:
    expert_BS = torch.where(CLASSES[name], 3, at_random(3))
    result = cards_of(expert_BS)
    (card,), share = [x for x in result.layers[0] if x.expert == 3], CLASSES[name].double().mean().item()
    (own,) = [x for x in card.named(result.comparisons) if x.name == name]
    assert (own.share, own.taken) == (1.0, 1.0) and own.in_text == pytest.approx(share)
    assert card.line(result.comparisons).endswith(f", {share:.0%} of the text")
    strongest = card.named(result.comparisons)[0]  # another may hold just as much: a colon ends a speaker's name
    assert strongest.least(result.comparisons) >= own.least(result.comparisons) > TIMES


def test_two_classes_are_named_the_strongest_first_and_of_an_even_expert_none() -> None:
    is_first_BS = CLASSES["capitals"] | CLASSES["line breaks"]
    expert_BS = torch.where(is_first_BS | (CLASSES["vowels"] & (at_random(8, 1) == 0)), 0, 1 + at_random(3))
    first, *others = lines_of(cards_of(expert_BS))[0]
    assert " and " in first and all(line.startswith("no class stands out, 2") for line in others)
    assert {"line breaks", "capitals"} & set(first.split(", ")[0].split(" and "))


def test_a_path_is_named_after_the_expert_before_and_comes_after_the_classes_of_characters() -> None:
    first_BS = at_random(4)
    result = cards_of(first_BS, first_BS, torch.where(CLASSES["capitals"], 0, 1 + first_BS % 3))
    assert lines_of(result)[0][2].startswith("no class stands out")
    assert [line.partition(",")[0] for line in lines_of(result)[1]] == [
        f"follows layer 00's expert {e}" for e in range(4)
    ]
    assert "follows" not in lines_of(result)[2][0]


def test_of_experts_at_random_hardly_a_page_names_a_class() -> None:
    """Runs of up to nine characters of one expert, which go with no class but are as long as words are."""
    named = 0
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        value_N = torch.randint(8, (PROBE.ids_BS.numel(),), generator=draw)
        runs_N = value_N.repeat_interleave(torch.randint(1, 10, value_N.shape, generator=draw))[: value_N.numel()]
        layer = class_shares(torch.stack([runs_N.view_as(PROBE.ids_BS) == e for e in range(8)]), CLASSES)
        named += any(x.least(8 * len(CLASSES)) > TIMES for of_expert in layer for x in of_expert)
    assert named <= 1


def test_the_ratio_has_the_interval_of_a_jackknife_over_windows_by_hand() -> None:
    draw = torch.Generator().manual_seed(3)
    all_B, first_B = torch.full((12,), 50), torch.randint(5, 20, (12,), generator=draw)
    both_B = (first_B * 0.4).long() + 1
    second_B = both_B + torch.randint(1, 5, (12,), generator=draw)
    result = log_ratio(both_B, first_B, second_B, all_B)

    def ratio(keep: list[int]) -> Tensor:
        both, first, second, every = (x_B[keep].sum() for x_B in (both_B, first_B, second_B, all_B))
        return ((both / first) / (second / every)).log()

    rest_B = torch.stack([ratio([b for b in range(12) if b != left]) for left in range(12)])
    assert result.mean == pytest.approx(ratio(list(range(12))).item(), abs=1e-6)
    error = (11 / 12 * (rest_B - result.mean).square().sum()).sqrt().item()
    assert result.error == pytest.approx(error, rel=1e-4) and result.freedom is not None and result.freedom < 11.0
    low, _ = result.interval(100) or (0.0, 0.0)
    assert low == pytest.approx(result.mean - t_quantile(result.freedom, 1 - 0.05 / 100) * error, rel=1e-4)
    assert log_ratio(both_B[:7], first_B[:7], second_B[:7], all_B[:7]).error is None  # too few windows


def test_characters_bigrams_and_contexts_are_those_of_the_text() -> None:
    expert_BS = torch.where(CLASSES["vowels"], 2, at_random(2))
    result = cards_of(expert_BS)
    card, own = result.layers[0][2], [c for c in TEXT if c in "aeiou"]
    assert card.load == pytest.approx(len(own) / len(TEXT)) and card.name == "layer 00, expert 2"
    for character, share, by_chance in card.characters:
        assert share == pytest.approx(own.count(character) / len(own))
        assert by_chance == pytest.approx(TEXT.count(character) / len(TEXT))
    assert [x[1] for x in card.characters] == sorted((x[1] for x in card.characters), reverse=True)
    assert all(bigram[-1] in "aeiou" for bigram, *_ in card.bigrams)
    assert [how for how, *_ in card.contexts] == ["highest"] * 2 + ["median"] * 2 + ["lowest"] * 2
    gates = [gate for _, gate, _ in card.contexts]
    assert min(gates[:2]) > max(gates[2:4]) >= min(gates[2:4]) > max(gates[4:])
    for _, gate, (before, character, after) in card.contexts:
        place = round((1.0 - gate) * 4096)
        assert TEXT[place - len(before) : place + 1 + len(after)] == before + character + after
        assert place // 32 == (place - len(before)) // 32 == (place + len(after)) // 32  # of one window
    assert (
        cards_of(expert_BS).layers[0][2].contexts == card.contexts != cards_of(expert_BS, seed=1).layers[0][2].contexts
    )


def model_of(expert_BS: Tensor, *, blocks: Any = (0,), probe: Probe = PROBE) -> Any:
    rows = [assigned(expert_BS)] * len(blocks)
    result = cards(rows, CLASSES, PROBE, VOCABULARY.characters, blocks=blocks, num_experts=4)
    return SimpleNamespace(vocabulary=VOCABULARY, probe=probe, blocks=blocks, assignments=rows, cards=result)


def test_experts_with_other_numbers_are_matched_by_what_they_share_and_of_another_text_by_number() -> None:
    def numbers(pairs: list[tuple[ExpertCard | None, ExpertCard | None, float | None]]) -> list[Any]:
        return [tuple(card and card.expert for card in pair[:2]) for pair in pairs]

    expert_BS, order = at_random(4), torch.tensor([2, 0, 3, 1])
    noisy_BS = torch.where(at_random(10, 7) == 0, at_random(4, 8), order[expert_BS])
    one, other = model_of(expert_BS), model_of(noisy_BS, blocks=(0, 2))
    result = matched(one, other)
    assert numbers(result[0]) == list(enumerate(order.tolist()))
    assert [share for *_, share in result[0]] == pytest.approx([0.925] * 4, abs=0.03)
    assert numbers(result[2]) == [(None, e) for e in range(4)]  # no layer of the first
    elsewhere = replace(PROBE, ids_BS=PROBE.ids_BS.roll(1))
    pairs = matched(one, model_of(noisy_BS, probe=elsewhere))[0]
    assert numbers(pairs) == [(e, e) for e in range(4)] and {share for *_, share in pairs} == {None}
