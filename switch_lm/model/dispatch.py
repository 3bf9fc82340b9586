"""Moves tokens to the input rows of their experts and back, with one gather in each direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing


@dataclass(frozen=True)
class ExpertRows:
    """Which of the experts' P input rows holds which of the N choices, and the inverse map.

    With a capacity there is a row for each capacity slot, P = E*G*C; without one, a row for each choice, P = N. The
    rows of one expert follow each other, in the order of its queue.
    """

    row_N: Tensor  # int64; P: the choice is dropped
    choice_P: Tensor  # int64; N: the row is empty

    @classmethod
    def of(cls, routing: Routing) -> ExpertRows:
        """The rows of one router call."""
        expert_N, slot_N = routing.assigned_TK.flatten(), routing.slot_TK.flatten()
        num_choices, num_experts = expert_N.numel(), routing.load_E.numel()
        if routing.capacity is None:
            start_E = routing.load_E.cumsum(0) - routing.load_E
            num_rows, row_N = num_choices, start_E[expert_N] + slot_N
        else:
            rows_per_expert = routing.num_groups * routing.capacity
            num_rows = num_experts * rows_per_expert
            group_N = torch.arange(num_choices, device=expert_N.device) // (num_choices // routing.num_groups)
            row_N = expert_N * rows_per_expert + group_N * routing.capacity + slot_N
        if not routing.keeps_all:
            row_N = torch.where(routing.kept_TK.flatten(), row_N, num_rows)
        choice_P = row_N.new_full((num_rows + 1,), num_choices)
        choice_P = choice_P.scatter(0, row_N, torch.arange(num_choices, device=row_N.device))[:num_rows]
        return cls(row_N, choice_P)

    def dispatch(self, x_ND: Tensor) -> Tensor:
        """The experts' input (P, D), from each choice's token (N, D). An empty row holds any token and is not read."""
        return _MoveRows.apply(x_ND, self.choice_P, self.row_N)  # type: ignore[no-untyped-call]

    def combine(self, y_PD: Tensor) -> Tensor:
        """Each choice's output (N, D), from that of the experts (P, D). Drops get any row: gate them with 0."""
        return _MoveRows.apply(y_PD, self.row_N, self.choice_P)  # type: ignore[no-untyped-call]


class _MoveRows(torch.autograd.Function):
    """Gathers rows. The map is one-to-one, so the gradient is a gather by the inverse map too, and no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, source_P: Tensor, target_N: Tensor) -> Tensor:
        ctx.save_for_backward(target_N)
        return x_ND.index_select(0, source_P.clamp(max=x_ND.shape[0] - 1))

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (target_N,) = ctx.saved_tensors
        zero_1D = grad_PD.new_zeros(1, grad_PD.shape[1])  # for rows that were not read: they point past the last
        return torch.cat([grad_PD, zero_1D]).index_select(0, target_N), None, None
