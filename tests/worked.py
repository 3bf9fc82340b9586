"""Router calls and layers whose every number is known by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.options import BalanceOptions, RouterOptions, TopKOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.topk import TopKRouter

ONE_CHOICE = TopKOptions(top_k=1)
FIVE_TOKENS = [
    [0.7, 0.1, 0.1, 0.1],
    [0.8, 0.1, 0.0, 0.1],
    [0.6, 0.1, 0.1, 0.2],
    [0.5, 0.2, 0.1, 0.2],
    [0.1, 0.1, 0.7, 0.1],
]


def logits_of(probs: list[list[float]]) -> Tensor:
    return torch.tensor(probs).clamp(min=1e-9).log()


def route(
    logits_TE: Tensor,
    *,
    capacity: int | None,
    rule: TopKOptions = ONE_CHOICE,
    num_groups: int = 1,
    training: bool = False,
    bias_E: Tensor | None = None,
) -> Routing:
    """What a `TopKRouter` makes of given logits; with `bias_E` it selects by p plus this bias."""
    balance = None if bias_E is None else BalanceOptions(name="sign")
    router = TopKRouter(rule, d_model=1, num_experts=logits_TE.shape[1], balance=balance).train(training)
    if router.bias_E is not None and bias_E is not None:
        router.bias_E.copy_(bias_E)
    return router.assign(logits_TE, logits_TE, ids_T=None, position_T=None, capacity=capacity, num_groups=num_groups)


def routed(probs: list[list[float]], capacity: int | None = None, **options: Any) -> Routing:
    """A router call; options of `topk`, and of `route`."""
    of_call = {key: options.pop(key) for key in ("num_groups", "training", "bias_E") if key in options}
    return route(logits_of(probs), capacity=capacity, rule=TopKOptions(**{"top_k": 1} | options), **of_call)


def kept(routing: Routing) -> list[int]:
    """The tokens whose first choice is kept."""
    return routing.kept_TK[:, 0].nonzero().flatten().tolist()


def worked(
    probs: list[list[float]], rows: int = 1, balance: BalanceOptions | None = None, **options: Any
) -> tuple[SwitchFeedForward, Tensor]:
    """A layer and an input whose every number is known; options of `topk` and of the layer.

    Token t is the t-th unit vector and has the probabilities of row t; expert e multiplies its input by e + 1.
    """
    num_tokens, num_experts = len(probs), len(probs[0])
    of_router = {field.name: options.pop(field.name) for field in fields(TopKOptions) if field.name in options}
    rule: RouterOptions = TopKOptions(**{"top_k": 1, "jitter": 0.0} | of_router)
    router = TopKRouter(rule, d_model=num_tokens, num_experts=num_experts, balance=balance)
    sizes = {"d_model": num_tokens, "d_ff": num_tokens, "num_experts": num_experts, "capacity_factor": None}
    module = SwitchFeedForward(**sizes | options, router=router)
    with torch.no_grad():
        torch.as_tensor(router.w_DE).copy_(logits_of(probs))
        module.experts.w_in_EDF.copy_(torch.eye(num_tokens))
        module.experts.w_out_EFD.copy_(torch.eye(num_tokens) * torch.arange(1, num_experts + 1)[:, None, None])
    return module, torch.eye(num_tokens).view(rows, -1, num_tokens)


def factors(y_BSD: Tensor) -> list[float]:
    """What each token of `worked` was multiplied by; the rest must be 0."""
    y_TD = y_BSD.detach().flatten(0, 1)
    assert torch.equal(y_TD, y_TD.diag().diag())
    return y_TD.diag().tolist()
