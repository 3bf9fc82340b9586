"""The Switch layer: its output, its capacity in training and evaluation, and its state."""

from __future__ import annotations

import torch
from torch import nn

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.options import SwitchOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter


def layer(num_experts: int = 4, **options: object) -> SwitchFeedForward:
    torch.manual_seed(1)
    router = SwitchRouter(SwitchOptions(jitter=0.0), d_model=8, num_experts=num_experts)
    module = SwitchFeedForward(d_model=8, d_ff=12, num_experts=num_experts, router=router, **options)  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_a_dropped_token_gets_an_output_of_zero() -> None:
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


def test_a_capacity_factor_of_a_call_replaces_the_configured_one() -> None:
    module, x = layer(capacity_factor=0.25).eval(), torch.randn(2, 20, 8)
    assert module(x, capacity_factor=1.0)[1].capacity == 10
    assert module.train()(x, capacity_factor=None)[1].capacity is None


def test_the_router_computes_in_float32_under_autocast() -> None:
    module, x = layer(), torch.randn(2, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = module(x.bfloat16())
        assert routing.probs_TE.dtype == torch.float32
        assert y.dtype == torch.bfloat16
    assert torch.equal(
        routing.probs_TE, (x.bfloat16().float().flatten(0, 1) @ torch.as_tensor(module.router.w_DE)).softmax(-1)
    )


def test_its_state_is_one_router_matrix_and_two_stacks_of_experts() -> None:
    shapes = {name: tuple(value.shape) for name, value in layer().state_dict().items()}
    assert shapes == {"router.w_DE": (8, 4), "experts.w_in_EDF": (4, 8, 12), "experts.w_out_EFD": (4, 12, 8)}


def test_with_all_tokens_at_one_expert_the_counts_are_exact() -> None:
    module = layer(capacity_factor=1.0)
    with torch.no_grad():
        torch.as_tensor(module.router.w_DE).zero_()  # ties go to the first expert
    _, routing = module(torch.randn(2, 10, 8))
    assert isinstance(routing, Routing)
    assert routing.load_E.tolist() == [20, 0, 0, 0]
    assert routing.kept_E.tolist() == [5, 0, 0, 0]
