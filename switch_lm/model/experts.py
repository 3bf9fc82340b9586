"""The feed-forwards: a dense one, and the stacked experts with their two ways of running, padded or ragged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from switch_lm.routers.noise import Dropout


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared (Primer, So et al., 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "relu_squared": relu_squared}


class FeedForward(nn.Module):
    """The dense feed-forward that one expert's computation equals."""

    def __init__(self, *, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.w_in = nn.Linear(d_model, d_ff, bias=False)
        self.w_out = nn.Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.w_out(self.activation(self.w_in(x_BSD)))


class Experts(nn.Module):
    """E independent two-layer feed-forwards without bias; weights stacked expert first: (E, D, F) and (E, F, D)."""

    def __init__(
        self, *, num_experts: int, d_model: int, d_ff: int, activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.w_in_EDF = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.w_out_EFD = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)  # between the matrices: "expert dropout" (Switch Transformers, 2.4)

    def padded(self, x_ECD: Tensor) -> Tensor:
        """Every expert on its C slots: two batched products, the same shape whatever the router did."""
        return torch.bmm(self.dropout(self.activation(torch.bmm(x_ECD, self.w_in_EDF))), self.w_out_EFD)

    def one_token(self, x_1D: Tensor, expert_11: Tensor) -> Tensor:
        """A single token's expert, its matrices taken where they lie (1, D): there is nothing to sort or to move."""
        dtype, expert = product_dtype(x_1D), int(expert_11)
        h_1F = self.activation(x_1D.to(dtype) @ self.w_in_EDF[expert].to(dtype))
        return self.dropout(h_1F) @ self.w_out_EFD[expert].to(dtype)

    def ragged(self, x_ND: Tensor, load_E: Tensor) -> Tensor:
        """Every expert on its own rows of `x_ND`, which is sorted by expert. One copy of the loads to the host."""
        dtype, pieces = product_dtype(x_ND), _pieces(load_E.tolist(), x_ND.device.type)
        h_NF = self.activation(ragged_product(x_ND.to(dtype), self.w_in_EDF.to(dtype), pieces))
        return ragged_product(self.dropout(h_NF), self.w_out_EFD.to(dtype), pieces)


def product_dtype(x: Tensor) -> torch.dtype:
    """What `x` is cast to in a matrix product: autocast's precision, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `end` belong to one expert."""

    expert: int
    start: int
    end: int


def _pieces(loads: Sequence[int], device: str) -> list[Piece]:
    """The rows of each expert in one piece, or two on a CPU: the multiple of 64 and the rest.

    oneDNN compiles a bf16 kernel for each shape and keeps the last thousand. Loads differ in every step: as they are,
    compiling took four fifths of a dropless layer's time.
    """
    pieces, start = [], 0
    for expert, load in enumerate(loads):
        rest = load % 64 if device == "cpu" else 0
        for rows in (load - rest, rest):
            if rows:
                pieces.append(Piece(expert, start, start + rows))
                start += rows
    return pieces


def ragged_product(x_NI: Tensor, w_EIO: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Each piece's rows times its expert's matrix (N, O); the pieces cover all rows."""
    y_NO: Tensor = _RaggedProduct.apply(x_NI, w_EIO, pieces)  # type: ignore[no-untyped-call]
    return y_NO


class _RaggedProduct(torch.autograd.Function):
    """One node for all experts, which write where their rows lie: nothing is split, joined or added up."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, w_EIO: Tensor, pieces: Sequence[Piece]) -> Tensor:
        ctx.save_for_backward(x_NI, w_EIO)
        ctx.pieces = pieces
        y_NO = x_NI.new_empty(x_NI.shape[0], w_EIO.shape[2])
        for p in pieces:
            torch.mm(x_NI[p.start : p.end], w_EIO[p.expert], out=y_NO[p.start : p.end])
        return y_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NI, w_EIO = ctx.saved_tensors
        grad_x_NI, grad_w_EIO = torch.empty_like(x_NI), torch.zeros_like(w_EIO)
        for p in ctx.pieces:
            x_nI, grad_nO = x_NI[p.start : p.end], grad_NO[p.start : p.end]
            torch.mm(grad_nO, w_EIO[p.expert].T, out=grad_x_NI[p.start : p.end])
            torch.addmm(grad_w_EIO[p.expert], x_nI.T, grad_nO, out=grad_w_EIO[p.expert])
        return grad_x_NI, grad_w_EIO, None
