"""The losses: language, load balancing. Pure functions of what the model returned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.routing import Routing


def language_loss(logits: Tensor, target_BS: Tensor) -> Tensor:
    """Mean cross entropy in nats a character, of logits (B, S, V) against the characters that followed (B, S)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), target_BS.flatten())


def load_balancing_loss(routing: Routing) -> Tensor:
    """E x sum_i f_i P_i of one router call: 1 for a uniform router, E if all tokens go to one expert, surely.

    Only P has a gradient. Source: Switch Transformers, eq. 4 to 6.
    """
    num_experts = routing.load_E.numel()
    return num_experts * (routing.fraction_E * routing.mean_prob_E).sum()  # eq. 4


def balance_loss(routings: Iterable[Routing]) -> Tensor:
    """The load balancing losses of all Switch layers, added; 0 for a dense model."""
    return sum((load_balancing_loss(routing) for routing in routings), start=torch.zeros(()))
