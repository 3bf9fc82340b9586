"""The losses of a router: load balancing, z, importance. Pure functions of one routing; all are 0-d."""

from collections.abc import Callable

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing


def load_balancing_loss(routing: Routing) -> Tensor:
    """E x sum_i f_i P_i of one router call: 1 for a uniform router, E if one expert gets all tokens with probability 1.

    Only P has a gradient; alpha is not included. Source: Switch Transformers, eq. 4 to 6. With `balanced_rows` it is
    the mean of their losses, each with its own f and P (the sequence-wise loss of DeepSeek-V3, section 2.1.2).
    """
    if (rows := routing.balanced_rows) > 1:
        load_RE = _sums_RE(routing, routing.expert_N, torch.ones_like(routing.gate_N))
        fraction_RE = load_RE / load_RE.sum(dim=1, keepdim=True).clamp(min=1)
        mean_prob_RE = routing.probs_TE.view(rows, -1, routing.num_experts).mean(dim=1)
        return routing.num_experts * (fraction_RE * mean_prob_RE).sum(dim=1).mean()
    return routing.num_experts * (routing.fraction_E * routing.mean_prob_E).sum()  # eq. 4


def router_z_loss(routing: Routing) -> Tensor:
    """Mean over tokens of (log sum_i exp logit_i)^2, which keeps the router's logits small (ST-MoE, eq. 5).

    0 for a router without weights.
    """
    if routing.logits_TE is None:
        return torch.zeros((), device=routing.scores_TE.device)
    return routing.logits_TE.logsumexp(dim=-1).square().mean()


def importance_loss(routing: Routing, *, over_all: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Squared coefficient of variation of the experts' importance, the sum of gates (Shazeer et al. 2017, eq. 8).

    `over_all` adds up the sums (E) of several processes, each of which has a part of the tokens. With `balanced_rows`
    it is the mean over them.
    """
    importance_RE = over_all(_sums_RE(routing, routing.assigned_N, routing.gate_N))
    tiny = torch.finfo(importance_RE.dtype).tiny  # a router may give no token an expert
    variation_R = importance_RE.var(dim=-1, correction=0) / importance_RE.mean(dim=-1).square().clamp(min=tiny)
    return variation_R.mean()


def _sums_RE(routing: Routing, expert_N: Tensor, value_N: Tensor) -> Tensor:
    """The sums of a value of assignments over each of the `balanced_rows` and expert; (E) of all where that is 1."""
    rows, num_experts = routing.balanced_rows, routing.num_experts
    place_N = expert_N if rows == 1 else routing.token_N // (routing.num_tokens // rows) * num_experts + expert_N
    value_N = value_N if routing.used_N is None else value_N * routing.used_N
    sums = torch.zeros(rows * num_experts, dtype=routing.probs_TE.dtype, device=value_N.device)
    sums = sums.index_add(0, place_N, value_N)
    return sums if rows == 1 else sums.view(rows, num_experts)
