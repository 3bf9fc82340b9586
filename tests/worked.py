"""Router calls and layers whose every number is known by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.routing import Routing, RoutingRule, route

FIVE_TOKENS = [
    [0.7, 0.1, 0.1, 0.1],
    [0.8, 0.1, 0.0, 0.1],
    [0.6, 0.1, 0.1, 0.2],
    [0.5, 0.2, 0.1, 0.2],
    [0.1, 0.1, 0.7, 0.1],
]


def logits_of(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs).clamp(min=1e-9).log()


def routed(probs: list[list[float]], capacity: int | None = None, **options: Any) -> Routing:
    """A router call; options of the rule, and of `route`."""
    of_call = {key: options.pop(key) for key in ("num_groups", "training", "selection_bias_E") if key in options}
    return route(logits_of(probs), capacity=capacity, rule=RoutingRule(**options), **of_call)


def kept(routing: Routing) -> list[int]:
    """The tokens whose first choice is kept."""
    return routing.kept_TK[:, 0].nonzero().flatten().tolist()


def worked(probs: list[list[float]], rows: int = 1, **options: Any) -> tuple[SwitchFeedForward, Tensor]:
    """A layer and an input whose every number is known.

    Token t is the t-th unit vector and has the probabilities of row t; expert e multiplies its input by e + 1.
    """
    num_tokens, num_experts = len(probs), len(probs[0])
    of_rule = {key: options.pop(key) for key in vars(RoutingRule()) if key in options}
    defaults = {"router_jitter": 0.0, "capacity_factor": None, "rule": RoutingRule(**of_rule)}
    module = SwitchFeedForward(d_model=num_tokens, d_ff=num_tokens, num_experts=num_experts, **defaults | options)
    with torch.no_grad():
        module.w_router_DE.copy_(logits_of(probs))
        module.experts.w_in_EDF.copy_(torch.eye(num_tokens))
        module.experts.w_out_EFD.copy_(torch.eye(num_tokens) * torch.arange(1, num_experts + 1)[:, None, None])
    return module, torch.eye(num_tokens).view(rows, -1, num_tokens)


def factors(y_BSD: Tensor) -> list[float]:
    """What each token of `worked` was multiplied by; the rest must be 0."""
    y_TD = y_BSD.detach().flatten(0, 1)
    assert torch.equal(y_TD, y_TD.diag().diag())
    return y_TD.diag().tolist()
