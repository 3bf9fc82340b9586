"""The trace of a character: its experts in the pass that read it, its probability in the pass before."""

from __future__ import annotations

import pytest
import torch
from conftest import TEXT, tiny_model

from switch_lm.generation.sampling import generate
from switch_lm.generation.trace import Traced, trace
from switch_lm.model.transformer import SwitchLM, SwitchOutput
from switch_lm.pages.coloured_text import NOBODY
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
CONTEXT = 16
LENGTH = 3 * CONTEXT


def traced(model: SwitchLM, prompt: str = "To be", *, length: int = LENGTH, **how: float | None) -> list[Traced]:
    return list(trace(model, VOCABULARY, prompt, length=length, seed=1, **how))


@torch.inference_mode()
def windows(model: SwitchLM, known: list[Traced], *, given: int) -> list[SwitchOutput]:
    """A pass over the whole window, without a cache, for the prompt and then for each character after it."""
    ids = VOCABULARY.encode("".join(one.character for one in known)).tolist()
    window, outputs = ids[:given][-CONTEXT:], []
    for following in [*ids[given:], None]:
        window = window[-CONTEXT // 2 :] if len(window) > CONTEXT else window
        outputs.append(model(torch.tensor([window]), capacity_factor=None))
        window = [*window, following]
    return outputs


def test_each_character_has_the_experts_of_the_pass_that_read_it_first_across_restarts_of_the_cache() -> None:
    model = tiny_model()
    known = traced(model)
    passes = windows(model, known, given=5)
    passes_and_tokens = [(0, t - 5) for t in range(5)] + [(n, -1) for n in range(1, LENGTH + 1)]
    assert len(known) == len(passes_and_tokens)
    for one, (n, t) in zip(known, passes_and_tokens, strict=True):
        assert one.choices is not None
        assert len(one.choices) == 2
        for choice, routing in zip(one.choices, passes[n].routings, strict=True):
            probs, order = routing.probs_TE[t].sort(descending=True)
            assert (choice.expert, choice.second) == (int(order[0]), int(order[1]))
            assert (choice.gate, choice.second_probability) == pytest.approx(probs[:2].tolist(), abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3)])
def test_each_character_has_the_odds_it_was_drawn_with(temperature: float, top_k: int | None) -> None:
    model = tiny_model()
    known = traced(model, temperature=temperature, top_k=top_k)
    for one, output in zip(known[5:], windows(model, known, given=5)[:-1], strict=True):
        weight_V = (output.logits[0, -1].double() / temperature).exp()
        likeliest = weight_V.argsort(descending=True)[:top_k].tolist()
        share = {VOCABULARY.characters[i]: float(weight_V[i] / weight_V[likeliest].sum()) for i in likeliest}
        others = [c for c in share if c != one.character][:3]
        assert one.odds is not None
        assert one.odds.probability == pytest.approx(share[one.character], abs=1e-4)
        assert [c for c, _ in one.odds.alternatives] == others
        assert [p for _, p in one.odds.alternatives] == pytest.approx([share[c] for c in others], abs=1e-4)


def test_at_temperature_0_the_odds_are_those_of_temperature_1() -> None:
    model = tiny_model()
    known = traced(model, temperature=0.0, top_k=1)
    for one, output in zip(known[5:], windows(model, known, given=5)[:-1], strict=True):
        assert one.odds is not None
        assert one.odds.probability == pytest.approx(float(output.logits[0, -1].softmax(0).max()), abs=1e-4)
        assert len(one.odds.alternatives) == 3
        assert one.odds.alternatives[0][1] <= one.odds.probability


@pytest.mark.parametrize("prompt", ["To be", "", TEXT[:50]], ids=["short", "none", "longer than the context"])
def test_the_text_is_that_of_generate_and_the_prompt_stands_before_it(prompt: str) -> None:
    model = tiny_model()
    known = traced(model, prompt)
    assert "".join(one.character for one in known if one.odds is None) == prompt
    assert "".join(one.character for one in known[len(prompt) :]) == "".join(
        generate(model, VOCABULARY, prompt, length=LENGTH, seed=1)
    )
    assert all(one.odds is not None for one in known[len(prompt) :])


def test_characters_beyond_the_context_have_no_expert() -> None:
    known = traced(tiny_model(), TEXT[:50], length=1)
    assert [one.choices is None for one in known] == [True] * (50 - CONTEXT) + [False] * (CONTEXT + 1)


def test_without_length_the_prompt_is_read_and_nothing_written() -> None:
    known = traced(tiny_model(), length=0)
    assert [one.character for one in known] == list("To be")
    assert all(one.choices is not None and one.odds is None for one in known)


def test_a_dense_model_chooses_no_expert() -> None:
    assert {one.choices for one in traced(tiny_model(switch_every=0))} == {()}


def test_with_a_single_expert_there_is_no_second() -> None:
    choices = traced(tiny_model(num_experts=1), length=1)[-1].choices
    assert choices is not None
    assert [(choice.expert, choice.gate, choice.second) for choice in choices] == [(0, 1.0, NOBODY)] * 2


def test_with_two_experts_per_character_both_are_those_selected() -> None:
    model = tiny_model(top_k=2)
    known = traced(model, length=0)
    with torch.inference_mode():
        routings = model(VOCABULARY.encode("To be")[None], capacity_factor=None).routings
    for t, one in enumerate(known):
        assert one.choices is not None
        chosen = [routing.expert_TK[t].tolist() for routing in routings]
        assert [[choice.expert, choice.second] for choice in one.choices] == chosen
