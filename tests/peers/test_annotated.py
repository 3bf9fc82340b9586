"""Our Switch layer and that of the annotated implementation (labml-nn), with the same weights.

`labml_nn.transformers.switch` is imported as it is installed: of what its package declares it needs torch and labml.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from small_models import router_of
from torch import Tensor, nn

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import TopKOptions
from switch_lm.routers.routing import Routing

NUM_EXPERTS, D_MODEL, D_FF = 4, 6, 10


if find_spec("labml_nn") is None:
    pytest.skip("no labml-nn: get it with `make peers`", allow_module_level=True)


@pytest.fixture(scope="module")
def annotated() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of while it is imported is its own affair
        return import_module("labml_nn.transformers.switch")


def their_layer(
    annotated: Any, *, capacity_factor: float, drop_tokens: bool = True, is_scale_prob: bool = True, **changes: Any
) -> Any:
    """Its layer with distinct random experts, and every bias at zero: ours has none."""
    torch.manual_seed(3)
    layer = annotated.SwitchFeedForward(
        capacity_factor=capacity_factor,
        drop_tokens=drop_tokens,
        is_scale_prob=is_scale_prob,
        n_experts=changes.get("num_experts", NUM_EXPERTS),
        expert=annotated.FeedForward(D_MODEL, D_FF, 0.0),  # dropout 0, and ReLU by default
        d_model=D_MODEL,
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return layer


def our_layer(theirs: Any, **rule: Any) -> SwitchFeedForward:
    """Our layer of the same weights, under the options that make it the annotated one."""
    gates = "probability" if theirs.is_scale_prob else "straight_through"
    options = TopKOptions(top_k=1, overflow="passthrough", gate_scale=gates, **rule)
    layer = SwitchFeedForward(
        d_model=D_MODEL,
        d_ff=D_FF,
        num_experts=theirs.n_experts,
        capacity_factor=theirs.capacity_factor if theirs.drop_tokens else None,
        router=router_of(options, num_experts=theirs.n_experts, d_model=D_MODEL),
        activation="relu",
    )
    with torch.no_grad():
        for ours, same in zip(layer.parameters(), as_ours(theirs, lambda parameter: parameter), strict=True):
            ours.copy_(same)
    return layer


def as_ours(theirs: Any, read: Any) -> list[Tensor]:
    """Its router and experts, or what `read` gives of each, stacked and turned as our parameters are."""
    return [
        read(theirs.switch.weight).T,
        torch.stack([read(expert.layer1.weight).T for expert in theirs.experts]),
        torch.stack([read(expert.layer2.weight).T for expert in theirs.experts]),
    ]


def gradient(parameter: Tensor) -> Tensor:
    """Its gradient; an expert without tokens may have none at all."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shuffle before dropping becomes the identity, and so its drop order that of position."""
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n))


def assert_counts_agree(theirs: Any, routing: Routing) -> None:
    """What it returns beside the output: loads, summed probabilities, the number dropped and each highest p."""
    counts, route_prob, num_dropped, route_prob_max = theirs
    assert counts.tolist() == routing.load_E.tolist()
    assert torch.allclose(route_prob, routing.mean_prob_E * routing.expert_TK.numel(), atol=1e-5)
    assert num_dropped == (~routing.kept_TK).sum().item()
    assert torch.allclose(route_prob_max, routing.probs_TE.gather(1, routing.expert_TK).squeeze(1), atol=1e-6)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("is_scale_prob", [True, False])
@pytest.mark.parametrize("drop_tokens", [True, False])
@pytest.mark.parametrize("capacity_factor", [0.5, 1.0, 1.5, 4.0])  # 3, 6, 9 and 24 slots for 24 tokens, all exact
def test_outputs_counts_and_gradients_are_those_of_the_annotated_implementation(
    annotated: Any, capacity_factor: float, drop_tokens: bool, is_scale_prob: bool
) -> None:
    theirs = their_layer(
        annotated, capacity_factor=capacity_factor, drop_tokens=drop_tokens, is_scale_prob=is_scale_prob
    )
    ours = our_layer(theirs)
    x, weight = torch.randn(8, 3, D_MODEL, requires_grad=True), torch.randn(8, 3, D_MODEL)
    x_too = x.detach().clone().requires_grad_()

    y, routing = ours(x)
    y_too, *facts = theirs(x_too)
    assert torch.allclose(y, y_too, atol=1e-6)
    assert_counts_agree(facts, routing)
    assert (facts[2] > 0) == (drop_tokens and capacity_factor <= 1.0)  # an even load is not what random weights give

    (y * weight).sum().backward()
    (y_too * weight).sum().backward()
    assert x.grad is not None and x_too.grad is not None
    assert torch.allclose(x.grad, x_too.grad, atol=1e-5)
    for parameter, wanted in zip(ours.parameters(), as_ours(theirs, gradient), strict=True):
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-3
        assert torch.allclose(parameter.grad, wanted, atol=1e-5)


def test_the_balance_loss_made_of_what_it_returns_is_ours(annotated: Any) -> None:
    """In its experiment: n_experts x sum(counts / total x route_prob / total)."""
    theirs = their_layer(annotated, capacity_factor=0.5)
    x = torch.randn(8, 3, D_MODEL)
    _, counts, route_prob, _, _ = theirs(x)
    loss = load_balancing_loss(our_layer(theirs)(x)[1])
    assert loss.item() == pytest.approx((NUM_EXPERTS * (counts / 24 * route_prob / 24).sum()).item())
    assert loss.item() > 1.01  # not what an even load would give whatever the formula


# --- Where it differs, and why ours does not follow


def test_it_drops_at_random_in_evaluation_too_and_ours_only_in_training(annotated: Any) -> None:
    """Validation and generation must not be random, nor a token's fate depend on the rest of a batch (fault 4).

    How many are dropped is the same in training: only who is differs.
    """
    theirs = their_layer(annotated, capacity_factor=0.5)
    ours = our_layer(theirs, drop_order="random")
    x = torch.randn(8, 3, D_MODEL)
    assert (~ours(x)[1].kept_TK).sum().item() == theirs(x)[3] > 0
    evaluated = [layer.eval()(x)[0] for layer in (ours, theirs) for _ in range(2)]
    assert torch.equal(evaluated[0], evaluated[1])
    assert not torch.allclose(evaluated[2], evaluated[3], atol=1e-3)


def test_its_capacity_is_rounded_down_to_none_and_ours_is_at_least_one(annotated: Any) -> None:
    """int(1.0 x 3 / 4) is 0: of a short input every token is dropped, generation first of all (fault 2)."""
    theirs = their_layer(annotated, capacity_factor=1.0)
    x = torch.randn(3, 1, D_MODEL)
    assert theirs(x)[3] == 3
    _, routing = our_layer(theirs)(x)
    assert routing.capacity == 1 and routing.kept_TK.sum() == (routing.load_E > 0).sum() > 0


@pytest.mark.parametrize(
    ("factor", "num_experts", "num_tokens", "their_capacity", "our_capacity"),
    [
        (1.0, 4, 10, 2, 3),  # 2.5: the paper does not say which way; up, so that a factor of 1 places an even load
        (1.15, 5, 100, 22, 23),  # 23 exactly, but in floats 22.999999999999996
    ],
)
def test_its_capacity_is_computed_in_floats_and_rounded_down_and_ours_exactly_and_up(
    annotated: Any, factor: float, num_experts: int, num_tokens: int, their_capacity: int, our_capacity: int
) -> None:
    theirs = their_layer(annotated, capacity_factor=factor, num_experts=num_experts)
    with torch.no_grad():
        theirs.switch.weight.zero_()[0] = 1.0
    x = torch.rand(num_tokens, 1, D_MODEL)  # all to the first expert
    assert theirs(x)[3] == num_tokens - their_capacity
    assert our_layer(theirs)(x)[1].kept_E.tolist() == [our_capacity] + [0] * (num_experts - 1)


def test_its_experts_start_as_copies_of_one_and_ours_each_on_its_own(annotated: Any) -> None:
    """Equal experts get equal tokens' gradients and part only as the router chooses; the paper draws every matrix."""
    theirs = annotated.SwitchFeedForward(
        capacity_factor=1.0,
        drop_tokens=True,
        is_scale_prob=True,
        n_experts=NUM_EXPERTS,
        expert=annotated.FeedForward(D_MODEL, D_FF),
        d_model=D_MODEL,
    )
    first, *others = theirs.experts
    assert all(torch.equal(first.layer1.weight, other.layer1.weight) for other in others)
    first_DF, *others_DF = SwitchFeedForward(
        d_model=D_MODEL, d_ff=D_FF, num_experts=NUM_EXPERTS
    ).experts.w_in_EDF.unbind()
    assert not any(torch.allclose(first_DF, other_DF, atol=1e-3) for other_DF in others_DF)


def test_its_router_and_experts_have_biases_and_ours_have_none(annotated: Any) -> None:
    """The logits are x W_r (section 2.1)."""
    theirs = their_layer(annotated, capacity_factor=1.0)
    biases = sum(parameter.numel() for parameter in theirs.parameters() if parameter.dim() == 1)
    assert biases == NUM_EXPERTS + NUM_EXPERTS * (D_FF + D_MODEL)
    assert sum(p.numel() for p in theirs.parameters()) - biases == sum(
        p.numel() for p in our_layer(theirs).parameters()
    )


def test_under_bf16_autocast_it_fails_and_ours_routes_in_float32(annotated: Any) -> None:
    """Its output buffer has the input's dtype, its experts' output another (fault 11)."""
    theirs = their_layer(annotated, capacity_factor=1.0)
    ours, x = our_layer(theirs), torch.randn(8, 3, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype"):
            theirs(x)
        _, routing = ours(x)
    assert torch.equal(routing.probs_TE, ours(x)[1].probs_TE)
