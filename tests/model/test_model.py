"""The language model as a whole: shapes, parameter counts, causality, initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import lm_of

from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM

VARIANTS = [
    {},
    {"top_k": 2},
    {"num_experts": 64},
    {"switch_every": 2},
    {"switch_every": 0},
    {"switch_layers": [1]},
    {"switch_layers": [], "shared_expert": True},
    {"position": "learned", "tie_embeddings": True},
    {"position": "none", "num_experts": 1},
]


def small(**changes: Any) -> SwitchLM:
    torch.manual_seed(0)
    return lm_of(11, **{"init_scale": 0.1} | changes)


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_and_active_ones_are_known_before_anything_is_built(changes: dict[str, Any]) -> None:
    model = small(**changes)
    config, router = model.config, model.router_options
    assert config.num_params(11, router) == sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() // p.shape[0] * (p.shape[0] - router.top_k) for p in model.parameters() if p.dim() == 3)
    assert config.num_active_params(11, router) == config.num_params(11, router) - idle


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_prefix_has_the_same_logits_alone_in_the_whole_text_and_through_the_cache(changes: dict[str, Any]) -> None:
    model = small(**changes).eval()
    ids = torch.randint(11, (3, 12))
    whole = model(ids).logits
    assert whole.shape == (3, 12, 11)
    assert torch.allclose(model(ids[:, :7]).logits, whole[:, :7], atol=1e-4)
    cache = model.new_cache()
    steps = [model(ids[:, :5], cache=cache).logits] + [
        model(ids[:, i : i + 1], cache=cache).logits for i in range(5, 12)
    ]
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-4)


def test_later_characters_change_no_earlier_logit() -> None:
    model = small().eval()
    ids = torch.randint(11, (2, 12))
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 11
    before, after = model(ids).logits, model(changed).logits
    assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert not torch.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


def test_there_is_one_routing_per_switch_layer() -> None:
    ids = torch.randint(11, (2, 12))
    assert [len(small(switch_every=n)(ids).routings) for n in (0, 1, 2)] == [0, 2, 1]


def test_initial_weights_lie_within_two_deviations_and_have_88_percent_of_the_untruncated_one() -> None:
    model = SwitchLM(
        ModelConfig(d_model=64, d_ff=256, num_layers=1, context_length=64, position="learned"), vocab_size=65
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert (parameter == 1).all()
            continue
        sigma = (0.1 / (256 if "w_out_EFD" in name else 64)) ** 0.5  # fan_in is d_ff there, d_model elsewhere
        assert parameter.abs().max() <= 2 * sigma
        tolerance = 0.12 if "router" in name else 0.03  # the router has only 512 numbers
        assert parameter.std().item() == pytest.approx(0.88 * sigma, rel=tolerance), name


def test_experts_start_with_different_weights() -> None:
    w_in_EDF = small().state_dict()["blocks.0.ffn.experts.w_in_EDF"]
    assert not torch.allclose(w_in_EDF[0], w_in_EDF[1], atol=1e-3)


def test_more_positions_than_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match=r"13 positions exceed .* 12"):
        small()(torch.zeros(1, 13, dtype=torch.long))
