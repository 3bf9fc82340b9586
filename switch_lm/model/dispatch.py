"""Moves tokens to the input rows of their experts and back, by gathers alone: nothing is added atomically."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.model import devices
from switch_lm.routers.routing import Routing, at_least_float32

IN_ORDER = 4  # up to so many terms `sum(dim=)` adds in their order, and faster


@dataclass(frozen=True)
class ExpertRows:
    """Which of the experts' P input rows holds which of the N assignments, and the inverse map.

    The rows of one expert follow each other, in the order of its queue.
    """

    row_N: Tensor  # int64; P: the assignment is dropped
    choice_P: Tensor  # int64; N: the row is empty
    end_E: Tensor | None = None  # int64; the rows of each expert end before this one; None: each has as many

    @classmethod
    def padded(cls, routing: Routing, rows_per_expert: int) -> ExpertRows:
        """As many rows for each expert, P = E * `rows_per_expert`: one for each of its slots, or its largest load."""
        row_N = routing.assigned_N * rows_per_expert + routing.slot_N
        if routing.capacity is not None and routing.num_groups > 1:
            group_N = routing.token_N // (routing.num_tokens // routing.num_groups)
            row_N = row_N + group_N * routing.capacity
        return cls(*_both_ways(routing, row_N, routing.num_experts * rows_per_expert))

    @classmethod
    def packed(cls, routing: Routing) -> ExpertRows:
        """No empty row between two experts, P = N. Dropped ones leave empty rows at the end."""
        num_assignments = routing.token_N.numel()
        if routing.capacity is None:
            end_E = routing.load_E.cumsum(0)
            row_N = (end_E - routing.load_E)[routing.assigned_N] + routing.slot_N
            rows = cls(*_both_ways(routing, row_N, num_assignments), end_E)
            if routing.keeps_all:
                return rows
        else:
            rows = cls.padded(routing, routing.num_groups * routing.capacity)
            slots = rows.choice_P.numel() // routing.num_experts
            end_E = torch.arange(1, routing.num_experts + 1, device=rows.row_N.device) * slots
        before_P = F.pad((rows.choice_P < num_assignments).cumsum(0), (1, 0))  # how many rows are used before each
        row_N = before_P[rows.row_N.clamp(max=rows.choice_P.numel())]
        return cls(*_both_ways(routing, row_N, num_assignments), before_P[end_E])

    def dispatch(self, x_ND: Tensor) -> Tensor:
        """The experts' input (P, D), from each assignment's token (N, D). An empty row holds any token, never read."""
        return _MoveRows.apply(x_ND, self.choice_P, self.row_N)  # type: ignore[no-untyped-call]

    def combine(self, y_PD: Tensor) -> Tensor:
        """Each assignment's output (N, D), from the experts' (P, D). Drops get any row: gate them with 0."""
        return _MoveRows.apply(y_PD, self.row_N, self.choice_P)  # type: ignore[no-untyped-call]


class ByToken(NamedTuple):
    """The assignments of each token, of which it has any number, in the order of their list."""

    token_N: Tensor
    first_TM: Tensor | None = None  # int64; N where a token has fewer than M
    order_N: Tensor | None = None  # int64; on a CPU instead: the list in the order of tokens,
    start_T: Tensor | None = None  # and where each token's part of it starts

    @classmethod
    def of(cls, routing: Routing) -> ByToken:
        """ValueError on a CPU if the list holds entries that are no assignment."""
        token_N = routing.token_N
        if not devices.is_cpu(token_N.device):
            return cls(token_N, routing.first_TM(routing.num_experts))
        if routing.used_N is not None:
            raise ValueError("on a CPU, a routing must be compacted first")
        sorted_N, order_N = token_N.sort(stable=True)
        start_T = torch.searchsorted(sorted_N, torch.arange(routing.num_tokens))
        return cls(token_N, order_N=order_N, start_T=start_T)


@dataclass(frozen=True)
class TokenRows:
    """Which assignments are those of each token, in the order of their list."""

    routing: Routing
    by_token: ByToken | None  # None: each token has K, one after the other

    @classmethod
    def of(cls, routing: Routing) -> TokenRows:
        return cls(routing, None if routing.choices_per_token is not None else ByToken.of(routing))

    def spread(self, x_TD: Tensor) -> Tensor:
        """The token of each assignment (N, D)."""
        top_k = self.routing.choices_per_token
        if self.by_token is None:
            return x_TD if top_k == 1 else x_TD.repeat_interleave(top_k or 1, dim=0)
        return _Spread.apply(x_TD, *self.by_token)  # type: ignore[no-untyped-call]

    def sum(self, y_ND: Tensor) -> Tensor:
        """The sum of each token's assignments (T, D), added in the order of their list; 0 where it has none."""
        if self.by_token is not None:
            return _Sum.apply(y_ND, *self.by_token)  # type: ignore[no-untyped-call]
        top_k = self.routing.choices_per_token or 1
        if top_k == 1:
            return y_ND
        y_TKD = y_ND.unflatten(0, (-1, top_k))
        return y_TKD.sum(dim=1) if top_k <= IN_ORDER else _added(y_TKD.unbind(1), top_k)


def _both_ways(routing: Routing, row_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """`row_N` and `choice_P` of `ExpertRows`, from the rows of the assignments as if none were dropped."""
    num_assignments = row_N.numel()
    if not routing.keeps_all:
        row_N = torch.where(routing.kept_N, row_N, num_rows)
    choice_P = row_N.new_full((num_rows + 1,), num_assignments)
    return row_N, choice_P.scatter(0, row_N, torch.arange(num_assignments, device=row_N.device))[:num_rows]


class _MoveRows(torch.autograd.Function):
    """Gathers rows. The map is one-to-one, so the gradient is a gather by the inverse map too, and no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, source_P: Tensor, target_N: Tensor) -> Tensor:
        ctx.save_for_backward(target_N)
        return x_ND.index_select(0, source_P.clamp(max=x_ND.shape[0] - 1))

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (target_N,) = ctx.saved_tensors
        return _with_zero_row(grad_PD).index_select(0, target_N), None, None


class _Spread(torch.autograd.Function):
    """Gathers each assignment's token. Its gradient is `_Sum`, and the other way round."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, *by_token: Tensor) -> Tensor:
        ctx.save_for_backward(*by_token)
        return x_TD.index_select(0, by_token[0])

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _sum_in_order(grad_ND, ByToken(*ctx.saved_tensors)), None, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, *by_token: Tensor) -> Tensor:
        ctx.save_for_backward(by_token[0])
        return _sum_in_order(y_ND, ByToken(*by_token))

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None, None, None]:
        (token_N,) = ctx.saved_tensors
        return grad_TD.index_select(0, token_N), None, None, None, None


def _sum_in_order(y_ND: Tensor, by: ByToken) -> Tensor:
    """The sum of each token's assignments (T, D). On a GPU, gathers one of every token after the other."""
    if by.first_TM is None:
        assert by.order_N is not None
        total_TD = F.embedding_bag(by.order_N, at_least_float32(y_ND), by.start_T, mode="sum")
        return total_TD.to(y_ND.dtype)
    rows_ND = _with_zero_row(y_ND)
    return _added((rows_ND.index_select(0, index_T) for index_T in by.first_TM.unbind(1)), by.first_TM.shape[1])


def _added(parts: Iterable[Tensor], number: int) -> Tensor:
    """The sum of `number` tensors in their order, in float32 at least."""
    parts = iter(parts)
    total = first = next(parts)
    if number > 2:  # the sum of two is rounded once anyway
        total = total.to(torch.promote_types(first.dtype, torch.float32))
    for part in parts:
        total = total + part
    return total.to(first.dtype)


def _with_zero_row(y_ND: Tensor) -> Tensor:
    """For rows that were not read: they point past the last."""
    return torch.cat([y_ND, y_ND.new_zeros(1, y_ND.shape[1])])
