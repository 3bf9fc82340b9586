"""Moves tokens to their experts' places and back, at the cost of two gathers in either direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing


@dataclass(frozen=True)
class Places:
    """Where each of N choices is computed. P places: E x G x C padded ones, or N ragged ones sorted by expert."""

    place_N: Tensor  # P: the choice was dropped
    choice_P: Tensor  # N: the place is empty

    @classmethod
    def of(cls, routing: Routing) -> Places:
        """Places of one expert are neighbours, in order of the queue."""
        expert_N, slot_N = routing.assigned_TK.flatten(), routing.slot_TK.flatten()
        num_choices, num_experts = expert_N.numel(), routing.load_E.numel()
        if routing.capacity is None:
            start_E = routing.load_E.cumsum(0) - routing.load_E
            num_places, place_N = num_choices, start_E[expert_N] + slot_N
        else:
            places_of_expert = routing.num_groups * routing.capacity
            num_places = num_experts * places_of_expert
            group_N = torch.arange(num_choices, device=expert_N.device) // (num_choices // routing.num_groups)
            place_N = expert_N * places_of_expert + group_N * routing.capacity + slot_N
        if not routing.keeps_all:
            place_N = torch.where(routing.kept_TK.flatten(), place_N, num_places)
        choice_P = place_N.new_full((num_places + 1,), num_choices)
        choice_P = choice_P.scatter(0, place_N, torch.arange(num_choices, device=place_N.device))[:num_places]
        return cls(place_N, choice_P)

    def dispatch(self, x_ND: Tensor) -> Tensor:
        """Each choice's row at its place (P, D). An empty place holds any row: what it gives is never read."""
        return _MoveRows.apply(x_ND, self.choice_P, self.place_N)  # type: ignore[no-untyped-call]

    def combine(self, y_PD: Tensor) -> Tensor:
        """Each place's row back at its choice (N, D). A dropped choice gets any row: its gate must be 0."""
        return _MoveRows.apply(y_PD, self.place_N, self.choice_P)  # type: ignore[no-untyped-call]


class _MoveRows(torch.autograd.Function):
    """Rows by a partial permutation, whose gradient is rows by the inverse, 0 where there is none: no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, source_P: Tensor, target_N: Tensor) -> Tensor:
        ctx.save_for_backward(target_N)
        return x_ND.index_select(0, source_P.clamp(max=x_ND.shape[0] - 1))

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (target_N,) = ctx.saved_tensors
        zero_1D = grad_PD.new_zeros(1, grad_PD.shape[1])  # what a row without a source finds one past the last
        return torch.cat([grad_PD, zero_1D]).index_select(0, target_N), None, None
