"""One Switch layer against a loop over tokens that can not be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from switch_lm.experts import ACTIVATIONS
from switch_lm.routing import Routing, expert_capacity
from switch_lm.switch import SwitchFeedForward


def layer(num_experts: int = 4, **options: object) -> SwitchFeedForward:
    torch.manual_seed(1)
    module = SwitchFeedForward(d_model=8, d_ff=12, num_experts=num_experts, router_jitter=0.0, **options)  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def token_by_token(module: SwitchFeedForward, x_BSD: Tensor, capacity_factor: float | None) -> Tensor:
    """The layer as the paper says it, one token after the other."""
    x_TD = x_BSD.flatten(0, 1)
    capacity = expert_capacity(len(x_TD), module.num_experts, capacity_factor)
    taken = [0] * module.num_experts
    rows = []
    for x_D in x_TD:
        probs_E = torch.softmax(x_D @ module.w_router_DE, dim=0)
        e = int(probs_E.argmax())
        taken[e] += 1
        if capacity is not None and taken[e] > capacity:
            rows.append(torch.zeros_like(x_D))
        else:
            hidden = module.experts.activation(x_D @ module.experts.w_in_EDF[e])
            rows.append(probs_E[e] * (hidden @ module.experts.w_out_EFD[e]))
    return torch.stack(rows).view_as(x_BSD)


@pytest.mark.parametrize("capacity_factor", [None, 0.25, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("num_experts", [1, 4, 7])
def test_outputs_and_gradients_equal_a_loop_over_tokens(capacity_factor: float | None, num_experts: int) -> None:
    module = layer(num_experts, capacity_factor=capacity_factor)
    x = torch.randn(3, 11, 8, requires_grad=True)
    weight = torch.randn(3, 11, 8)
    inputs = [x, *module.parameters()]
    y, _ = module(x)
    slow = token_by_token(module, x, capacity_factor)
    assert torch.allclose(y, slow, atol=1e-5)
    fast_grads = torch.autograd.grad((y * weight).sum(), inputs)
    slow_grads = torch.autograd.grad((slow * weight).sum(), inputs, materialize_grads=True)
    for fast_grad, slow_grad in zip(fast_grads, slow_grads, strict=True):
        assert torch.allclose(fast_grad, slow_grad, atol=1e-5)


def test_a_dropped_token_leaves_only_its_residual() -> None:
    module = layer(capacity_factor=0.5)
    y, routing = module(torch.randn(4, 10, 8))
    dropped = ~routing.kept_TK[:, 0]
    assert dropped.any()
    assert (y.flatten(0, 1)[dropped] == 0).all()
    assert (y.flatten(0, 1)[~dropped] != 0).any(dim=-1).all()


def test_training_drops_beyond_capacity_and_evaluation_does_not() -> None:
    module, x = layer(capacity_factor=0.25), torch.randn(2, 20, 8)
    assert not module(x)[1].kept_TK.all()
    assert module.eval()(x)[1].kept_TK.all()
    assert module(x)[1].capacity is None


def test_a_capacity_given_to_a_call_stands_in_for_the_configured_one() -> None:
    module, x = layer(capacity_factor=0.25).eval(), torch.randn(2, 20, 8)
    assert module(x, capacity_factor=1.0)[1].capacity == 10
    assert module.train()(x, capacity_factor=None)[1].capacity is None


def test_the_router_computes_in_float32_under_autocast() -> None:
    module, x = layer(), torch.randn(2, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = module(x.bfloat16())
        assert routing.probs_TE.dtype == torch.float32
        assert y.dtype == torch.bfloat16
    assert torch.equal(routing.probs_TE, (x.bfloat16().float().flatten(0, 1) @ module.w_router_DE).softmax(-1))


def test_jitter_reaches_the_router_only_and_only_in_training() -> None:
    module, x = layer(capacity_factor=None), torch.randn(2, 20, 8)
    module.router_jitter = 0.3
    seen: list[Tensor] = []

    def relu_and_note(h: Tensor) -> Tensor:
        seen.append(h)
        return ACTIVATIONS["relu"](h)

    module.experts.activation = relu_and_note
    before = x.clone()
    y, routing = module(x)
    clean = (x.flatten(0, 1) @ module.w_router_DE).softmax(-1)
    assert not torch.allclose(routing.probs_TE, clean, atol=1e-4)
    assert torch.equal(x, before)
    by_expert = [x.flatten(0, 1)[routing.expert_TK[:, 0] == e] @ module.experts.w_in_EDF[e] for e in range(4)]
    assert all(
        torch.allclose(h, want, atol=1e-5) for h, want in zip(seen, [b for b in by_expert if len(b)], strict=True)
    )
    assert torch.equal(module.eval()(x)[1].probs_TE, clean)


def test_the_router_learns_from_the_output_alone() -> None:
    module = layer()
    y, _ = module(torch.randn(2, 20, 8))
    y.square().sum().backward()
    assert module.w_router_DE.grad is not None and module.w_router_DE.grad.abs().max() > 1e-4


def test_its_state_is_one_router_matrix_and_two_stacks_of_experts() -> None:
    shapes = {name: tuple(value.shape) for name, value in layer().state_dict().items()}
    assert shapes == {"w_router_DE": (8, 4), "experts.w_in_EDF": (4, 8, 12), "experts.w_out_EFD": (4, 12, 8)}


def test_all_tokens_to_one_expert_counts_exactly() -> None:
    module = layer(capacity_factor=1.0)
    with torch.no_grad():
        module.w_router_DE.zero_()  # ties go to the first expert
    _, routing = module(torch.randn(2, 10, 8))
    assert isinstance(routing, Routing)
    assert routing.load_E.tolist() == [20, 0, 0, 0]
    assert routing.kept_E.tolist() == [5, 0, 0, 0]
