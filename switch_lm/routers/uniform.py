"""A control: random experts, which any router should beat."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.base import Promise, Router
from switch_lm.routers.loops import uniform_choice
from switch_lm.routers.options import UniformOptions
from switch_lm.routers.routing import Routing

BITS = 0x7FFFFFFF


class UniformRouter(Router):
    """An expert drawn uniformly in training; in evaluation by a hash of position and id. The gate is 1."""

    name = "uniform"
    Options = UniformOptions
    oracle = staticmethod(uniform_choice)
    has_weights = False
    reads_input = False
    even_E: Tensor

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        even_E = torch.full((self.num_experts,), 1.0 / self.num_experts)
        self.register_buffer("even_E", even_E, persistent=False)

    def assign(
        self,
        x_TD: Tensor,
        logits_TE: None,
        *,
        ids_T: Tensor | None,
        position_T: Tensor | None,
        capacity: int | None,
        num_groups: int,
    ) -> Routing:
        num_tokens = x_TD.shape[0]
        if self.training:
            expert_T = torch.randint(self.num_experts, (num_tokens,), device=x_TD.device)
        elif ids_T is None or position_T is None:
            raise ValueError("router=uniform hashes positions and characters: give the layer ids_BS and position_S")
        else:
            expert_T = mixed(ids_T, position_T) % self.num_experts
        return self.token_choice(
            expert_T[:, None], self.even_E.expand(num_tokens, -1), capacity=capacity, num_groups=num_groups
        )

    def gates(self, score_TK: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(score_TK)

    def promise(self, *, training: bool, limited: bool) -> Promise:
        return replace(super().promise(training=training, limited=limited), draws=training, varies_gates=False)


def mixed(ids_T: Tensor, position_T: Tensor) -> Tensor:
    """An integer (T, int64, 31 bits) of each id and position, in which every bit depends on both."""
    hash_T = (ids_T * 0x9E3779B1 + position_T * 0x85EBCA6B + 1) & BITS
    for factor in (0x2C1B3C6D, 0x297A2D39):
        hash_T = ((hash_T ^ (hash_T >> 15)) * factor) & BITS
    return hash_T ^ (hash_T >> 13)
