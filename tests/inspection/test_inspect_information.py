"""The atlas: labels of a text, how much of a choice they explain, planted specialists, and routers that ignore all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from torch import Tensor

from switch_lm.inspection.atlas import Atlas, atlas
from switch_lm.inspection.contents import _summary
from switch_lm.inspection.experts_per_token import experts_per_token
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe, Reading, read
from switch_lm.routers.options import BalanceOptions
from switch_lm.stats.information import Explained
from switch_lm.stats.intervals import Estimate, welch
from switch_lm.text.classes import CHARACTER, CLASS, NEXT, WINDOW, Lines, character_class, labels
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(torch.randint(len(VOCABULARY), (3000,), generator=torch.Generator().manual_seed(5)), context_length=16)
LABELS = labels(PROBE.split_ids, PROBE.place_BS, VOCABULARY.characters)
STRIDE = 2999 // len(PROBE.ids_BS)  # characters from the beginning of one window to that of the next
VOWELS = [i for i, character in enumerate(VOCABULARY.characters) if character in "aeiou"]


def drawn(seed: int, high: int, tokens: int = 2000) -> Tensor:
    return torch.randint(high, (tokens,), generator=torch.Generator().manual_seed(seed))


def reading_of(expert_BS: Tensor) -> Reading:
    """One layer of four experts, with what the atlas reads."""
    none_LBS = torch.zeros(1, *expert_BS.shape)
    facts = expert_BS[None], none_LBS, expert_BS[None], none_LBS, none_LBS + 1
    return Reading(*facts, none_LBS[0], num_experts=4, blocks=[0])


def atlas_of(reading: Reading, seed: int = 0) -> Atlas:
    return atlas(reading, LABELS, num_characters=len(VOCABULARY), seed=seed)


def by_label(of_layers: Atlas, layer: int = 0) -> dict[str, Explained]:
    return {one.label: one for one in of_layers.explained[layer]}


# --- Labels


@pytest.mark.parametrize(
    ("character", "kind"),
    [("e", "vowel"), ("y", "consonant"), ("E", "upper case"), ("3", "digit"), ("!", "punctuation"), (" ", "space"),
     ("\n", "newline"), ("é", "consonant")],
)  # fmt: skip
def test_every_character_has_a_class(character: str, kind: str) -> None:
    assert character_class(character) == kind


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\r\n"], ids=ascii)
def test_a_speaker_name_follows_an_empty_line_and_ends_with_a_colon_whatever_ends_a_line(end: str) -> None:
    text = "no name:\n\nKING:\nHe said:\n\nnot one\nALL:\n\nAll:".replace("\n", end)
    known, place_N = Vocabulary.of(text), torch.arange(len(text))
    lines = Lines.of(known.encode(text), known.characters)
    named = zip(text, lines.in_speaker_name(place_N).tolist(), strict=True)
    marked = "".join(c if inside else "." for c, inside in named)
    assert marked.replace(".", "") == "KING:All:"
    assert marked.index("KING:") == text.index("KING:") and marked.index("All:") == text.rindex("All:")
    assert lines.position(place_N).tolist() == [i for line in text.splitlines(keepends=True) for i in range(len(line))]
    assert {character_class(c) for c in end} == {"newline"}


def test_labels_of_a_window_know_the_line_that_began_before_it() -> None:
    line_BS, text = LABELS["position in the line"], VOCABULARY.decode(PROBE.split_ids)
    for row in range(1, 20):
        before = text[: row * STRIDE].rpartition("\n")[2]
        assert line_BS[row, 0] == len(before).bit_length()  # 0, 1, 2 to 3, ...
    after = [line_BS[row, s + 1].item() for row, s in (PROBE.ids_BS[:, :-1] == 0).nonzero().tolist()]
    assert VOCABULARY.characters[0] == "\n" and set(after) == {0}


def test_positions_are_labelled_in_doubling_steps_up_to_512() -> None:
    assert LABELS[WINDOW][0].tolist() == [0, 1, 2, 2, 3, 3, 3, 3] + [4] * 8
    text = VOCABULARY.characters[1] * 1500
    long = Probe.of(VOCABULARY.encode(text), context_length=1499, num_windows=1)
    label_S = labels(long.split_ids, long.place_BS, VOCABULARY.characters)["position in the line"][0]
    assert [label_S[position].item() for position in (255, 256, 511, 512, 1023, 1024)] == [8, 9, 9, 10, 10, 10]


def test_the_next_character_is_what_the_model_predicts() -> None:
    assert torch.equal(LABELS[NEXT][:, :-1], LABELS[CHARACTER][:, 1:])


# --- The atlas of a model


def vowels_to_expert_0() -> SwitchLM:
    """In the first layer expert 0 gets the vowels, and the rest of the character decides among the other three."""
    model = tiny_model(len(VOCABULARY), num_layers=1, d_model=16)
    block: Any = model.blocks[0]
    block.attention.out.weight.data.zero_()
    model.embedding.weight.data[:, 0] = -3.0
    model.embedding.weight.data[VOWELS, 0] = 3.0
    w_DE = model.router_parameters()[0].data
    w_DE[0] = torch.tensor([100.0, 0.0, 0.0, 0.0])
    return model


def test_an_expert_that_only_sees_vowels_is_detected() -> None:
    result = atlas_of(read(vowels_to_expert_0(), PROBE))
    count_VE, by_name = result.count_LVE[0], by_label(result)
    others = [i for i in range(len(VOCABULARY)) if i not in VOWELS]
    assert count_VE[VOWELS, 0].sum() == count_VE[VOWELS].sum() > 0 and count_VE[others, 0].sum() == 0
    by_class = by_name[CLASS]
    assert by_class.share > 0.3 and by_class.share > 5 * by_class.chance and by_class.beyond_chance(6)
    assert by_name[CHARACTER].share == pytest.approx(1.0)
    assert all(by_name[name].share == 0.0 for name in (NEXT, WINDOW))  # the character explains everything


def test_of_a_random_router_nothing_explains_more_than_chance() -> None:
    outcomes = []
    for seed in range(5):
        expert_BS = drawn(20 + seed, 4, PROBE.ids_BS.numel()).view_as(PROBE.ids_BS)
        result = atlas_of(reading_of(expert_BS), seed=seed)
        outcomes += [one.beyond_chance(6) for one in result.explained[0]]
    assert sum(outcomes) <= 1 and len(outcomes) == 30
    assert result.comparisons == 6


def test_a_router_that_depends_on_the_position_in_the_window_is_detected() -> None:
    """Shifted along the text such labels would stay in step with the windows; within a character they do not."""
    position_BS = torch.arange(16).expand_as(PROBE.ids_BS)
    window = by_label(atlas_of(reading_of(position_BS // 4)))[WINDOW]
    assert window.share > 0.5 and window.share > 2 * window.chance and window.beyond_chance(6)


def test_the_same_seed_gives_the_same_atlas() -> None:
    reading = read(tiny_model(len(VOCABULARY)), PROBE)
    first, again = (atlas_of(reading, seed=3) for _ in range(2))
    assert first.explained == again.explained
    assert atlas_of(reading, seed=4).explained != first.explained


def test_that_hard_tokens_get_more_experts_is_detected_and_a_number_at_random_has_no_favourites() -> None:
    draw, shape = torch.Generator().manual_seed(0), PROBE.ids_BS.shape
    plain = replace(reading_of(PROBE.ids_BS), nll_BS=torch.rand(shape, generator=draw))
    assert experts_per_token(plain, PROBE.ids_BS, VOCABULARY.characters) is None
    results = []
    for extra_BS in [(plain.nll_BS > 0.5).long(), *[torch.zeros(shape, dtype=torch.long)] * 20]:
        reading = replace(plain, number_LBS=(extra_BS + torch.randint(3, shape, generator=draw))[None])
        result = experts_per_token(reading, PROBE.ids_BS, VOCABULARY.characters)
        assert result is not None
        fifths = [group.layers[0][0] for group in result if group.by == "difficulty"]
        results.append(welch(fifths[-1], fifths[0]))
    assert results[0].resolved() and results[0].mean == pytest.approx(1.0, abs=0.1)
    assert sum(not one.resolved() for one in results[1:]) >= 17


# --- The probe and its reading


def test_windows_do_not_depend_on_the_model_and_a_smaller_probe_is_of_the_same_split() -> None:
    ids = drawn(9, 5, 1000)
    probe = Probe.of(ids, context_length=10, num_windows=20)
    assert torch.equal(probe.ids_BS[:, 1:], probe.target_BS[:, :-1]) and probe.ids_BS.shape == (20, 10)
    assert torch.equal(ids[probe.place_BS], probe.ids_BS)
    assert torch.equal(probe.smaller(4).ids_BS, Probe.of(ids, context_length=10, num_windows=4).ids_BS)


@pytest.mark.parametrize(
    "changes", [{}, {"top_k": 2, "renormalize_gates": True}, {"switch_every": 2}, {"overflow": "passthrough",
    "eval_capacity_factor": 0.5}, {"balance": BalanceOptions("sign", rate=0.1)}], ids=str
)  # fmt: skip
def test_a_reading_says_what_the_dropless_model_does(changes: dict[str, Any]) -> None:
    model = tiny_model(len(VOCABULARY), **changes)
    reading, output = read(model, PROBE), model(PROBE.ids_BS, capacity_factor=None)
    for layer, routing in enumerate(output.routings):
        expert_T, second_T = (x[layer].flatten() for x in (reading.expert_LBS, reading.second_LBS))
        assert torch.equal(expert_T, routing.expert_TK[:, 0])
        assert torch.equal(second_T, routing.probs_TE.argsort(dim=1, descending=True)[:, 1])
        assert torch.allclose(reading.gate_LBS[layer].flatten(), routing.gate_TK[:, 0], atol=1e-6)
    assert len(reading.expert_LBS) == model.config.num_switch_layers
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), PROBE.target_BS.flatten())
    assert reading.nll_BS.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ValueError, match="a dense model routes nothing"):
        read(tiny_model(len(VOCABULARY), switch_every=0), PROBE)


def test_an_atlas_needs_only_the_choices_of_a_model() -> None:
    reading = read(tiny_model(len(VOCABULARY)), PROBE)
    other = replace(reading, nll_BS=reading.nll_BS + 1.0, gate_LBS=-reading.gate_LBS)
    assert atlas_of(reading).explained == atlas_of(other).explained


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([0.02, 0.5], "alone predicts 50% of the choice of expert in 1 of 2 layers"),
        ([0.02, -0.5], "alone predicts the choice of expert in 0 of 2 layers"),
    ],
)
def test_the_lead_counts_the_layers_in_which_the_character_is_shown_to_explain(shares: list[float], words: str) -> None:
    """Two standard errors do not show it: t(31) is 2.35 for two layers."""
    beyond = [Estimate(share, 32, 0.01, 31.0) for share in shares]
    found = tuple((Explained("character", None, one.mean + 0.1, 0.1, one),) for one in beyond)
    other: Any = SimpleNamespace(held=(), layers=(), comparisons=0, loss=1.5)
    model: Any = SimpleNamespace(
        name="it", blocks=[0, 1], text=SimpleNamespace(num_experts=4), atlas=Atlas(torch.zeros(2, 1, 4), found),
        counterfactual=other, ablation=other, per_token=None, drops=None, training_dropped=None,
    )  # fmt: skip
    assert f"the current character {words}, beyond chance; nothing is dropped." in _summary(model)
    model.text.num_experts = 1
    assert _summary(model) == "`it` has a single expert: there is nothing to judge."
