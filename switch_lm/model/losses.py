"""The losses: language, load balancing, router z, importance. Pure functions of what the model returns; all are 0-d."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.routers.routing import Routing


def language_loss(logits: Tensor, target_BS: Tensor) -> Tensor:
    """Mean cross entropy in nats per character, of logits (B, S, V) and the ids of the next characters (B, S)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), target_BS.flatten())


def load_balancing_loss(routing: Routing) -> Tensor:
    """E x sum_i f_i P_i of one router call: 1 for a uniform router, E if one expert gets all tokens with probability 1.

    Only P has a gradient; alpha is not included. Source: Switch Transformers, eq. 4 to 6.
    """
    num_experts = routing.load_E.numel()
    return num_experts * (routing.fraction_E * routing.mean_prob_E).sum()  # eq. 4


def router_z_loss(routing: Routing) -> Tensor:
    """Mean over tokens of (log sum_i exp logit_i)^2, which keeps the router's logits small (ST-MoE, eq. 5)."""
    return routing.logits_TE.logsumexp(dim=-1).square().mean()


def importance_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' importance, the sum of gates (Shazeer et al. 2017, eq. 8)."""
    zeros_E = torch.zeros_like(routing.mean_prob_E)
    importance_E = zeros_E.index_add(0, routing.assigned_TK.flatten(), routing.gate_TK.flatten())
    return importance_E.var(correction=0) / importance_E.mean().square()


def summed(loss: Callable[[Routing], Tensor], routings: Sequence[Routing]) -> Tensor:
    """The sum of a loss over all Switch layers; 0 for a dense model."""
    return torch.stack([loss(routing) for routing in routings]).sum() if routings else torch.zeros(())
