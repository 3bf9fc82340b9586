"""The losses of a router: load balancing, z, importance. Pure functions of one routing; all are 0-d."""

from collections.abc import Callable

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing


def load_balancing_loss(routing: Routing) -> Tensor:
    """E x sum_i f_i P_i of one router call: 1 for a uniform router, E if one expert gets all tokens with probability 1.

    Only P has a gradient; alpha is not included. Source: Switch Transformers, eq. 4 to 6.
    """
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

    `over_all` adds up the sums (E) of several processes, each of which has a part of the tokens.
    """
    gate_N = routing.gate_N if routing.used_N is None else routing.gate_N * routing.used_N
    zeros_E = torch.zeros_like(routing.mean_prob_E)
    importance_E = over_all(zeros_E.index_add(0, routing.assigned_N, gate_N))
    tiny = torch.finfo(importance_E.dtype).tiny  # a router may give no token an expert
    return importance_E.var(correction=0) / importance_E.mean().square().clamp(min=tiny)
