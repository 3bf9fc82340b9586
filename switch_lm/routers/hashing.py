"""A control: each character always goes to the same expert."""

from dataclasses import replace
from heapq import heapify, heapreplace
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.base import Promise, Router
from switch_lm.routers.loops import fixed_by_character
from switch_lm.routers.options import HashOptions
from switch_lm.routers.routing import Routing


class HashRouter(Router):
    """The expert is a fixed function of the character's id, the gate 1. There are no weights.

    `router.balanced`: characters are assigned by their frequency in training, the most frequent first, each to the
    expert with the least load so far; otherwise at random. Source: Roller et al. 2021 (Hash Layers).
    """

    name = "hash"
    Options = HashOptions
    options: HashOptions
    oracle = staticmethod(fixed_by_character)
    has_weights = False
    reads_input = False
    expert_V: Tensor  # int64
    one_hot_EE: Tensor

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.register_buffer("expert_V", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("one_hot_EE", torch.eye(self.num_experts), persistent=False)

    def prepare(self, counts_V: Tensor, *, max_steps: int | None = None) -> None:
        """Assigns the characters; the assignment is a buffer, which checkpoints hold."""
        balanced, num_experts = self.options.balanced, self.num_experts
        expert_V = spread(counts_V, num_experts) if balanced else torch.randint(num_experts, counts_V.shape)
        self.expert_V = expert_V.to(self.expert_V.device)

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
        if ids_T is None or not self.expert_V.numel():
            raise ValueError(
                "router=hash assigns characters: call router.prepare(counts_V) once, and give the layer ids_BS"
            )
        expert_T = self.expert_V[ids_T]
        return self.token_choice(expert_T[:, None], self.one_hot_EE[expert_T], capacity=capacity, num_groups=num_groups)

    def gates(self, score_TK: Tensor) -> Tensor:
        """1, also of an expert that was not selected."""
        return torch.ones_like(score_TK)

    def promise(self, *, training: bool, limited: bool) -> Promise:
        return replace(super().promise(training=training, limited=limited), varies_gates=False)


def spread(counts_V: Tensor, num_experts: int) -> Tensor:
    """The expert (V), int64, of each of V items with such counts: the largest first, each to the least load so far.

    Of equal loads, the expert with fewer items, then the one with the smaller number.
    """
    counts = counts_V.tolist()
    experts = [(0, 0, expert) for expert in range(num_experts)]
    heapify(experts)
    expert_V = torch.zeros(len(counts), dtype=torch.int64)
    for item in sorted(range(len(counts)), key=lambda item: -counts[item]):  # keeps the order of equals
        load, number, expert = experts[0]
        expert_V[item] = expert
        heapreplace(experts, (load + counts[item], number + 1, expert))
    return expert_V
