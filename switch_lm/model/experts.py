"""Feed-forwards: a dense one, and stacked experts, which run on as many rows each, or on rows of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from switch_lm.model import devices
from switch_lm.model.cached import feed_forward
from switch_lm.routers.noise import Dropout

Share = tuple[int, slice]  # an expert, and some of its rows


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (Primer, So et al., 2021). A product: on a GPU, autocast would compute a power in float32."""
    positive = F.relu(x)
    return positive * positive


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "relu_squared": relu_squared}


class FeedForward(nn.Module):
    """activation(x W_in) W_out without bias (..., D): a dense layer, or the computation of one expert."""

    def __init__(self, *, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.w_in = nn.Linear(d_model, d_ff, bias=False)
        self.w_out = nn.Linear(d_ff, d_model, bias=False)
        self.activation, self.activation_name = ACTIVATIONS[activation], activation

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = x_BSD.flatten(0, -2) if x_BSD.dim() > 1 else x_BSD[None]
        if devices.computes_plainly(x_BSD) and len(x_TD) > 1:
            w_in_1DF, w_out_1FD = self.w_in.weight.T[None], self.w_out.weight.T[None]
            end_1 = torch.tensor([len(x_TD)])
            return feed_forward(x_TD, w_in_1DF, w_out_1FD, None, end_1, activation=self.activation_name).view_as(x_BSD)
        return self.w_out(self.activation(self.w_in(x_BSD)))


class Experts(nn.Module):
    """E independent feed-forwards without bias: activation(x W_in[e]) W_out[e]. Weights: (E, D, F) and (E, F, D)."""

    def __init__(
        self, *, num_experts: int, d_model: int, d_ff: int, activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.w_in_EDF = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.w_out_EFD = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.activation, self.activation_name = ACTIVATIONS[activation], activation
        self.dropout = Dropout(dropout)  # between the matrices (Switch Transformers, section 2.4: expert dropout)

    def padded(self, x_ECD: Tensor) -> Tensor:
        """Each expert on as many rows (E, C, D): two batched products."""
        return _batched(self.dropout(self.activation(_batched(x_ECD, self.w_in_EDF))), self.w_out_EFD)

    def computes_cached(self, x_ND: Tensor) -> bool:
        """Whether to use `cached`: on a CPU in full precision, and without dropout between the matrices."""
        return devices.in_full_precision(x_ND) and not (self.training and self.dropout.rate)

    def cached(self, x_ND: Tensor, choice_N: Tensor, end_E: Tensor) -> Tensor:
        """Each row through its expert (N, D), 0 where it has none. `choice_N` are the rows in order of their expert."""
        return feed_forward(x_ND, self.w_in_EDF, self.w_out_EFD, choice_N, end_E, activation=self.activation_name)

    def one_token(self, x_1D: Tensor, expert_1: Tensor) -> Tensor:
        """The expert `expert_1` on a single token (1, D), as in generation: nothing is sorted or moved."""
        dtype, expert = product_dtype(x_1D), int(expert_1)
        h_1F = self.activation(x_1D.to(dtype) @ self.w_in_EDF[expert].to(dtype))
        return self.dropout(h_1F) @ self.w_out_EFD[expert].to(dtype)

    def multiplies_groups(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `grouped` is fast there and takes matrices of this size, whose rows it wants at 16 bytes."""
        return devices.multiplies_groups(device, dtype) and all(side % 8 == 0 for side in self.w_in_EDF.shape[1:])

    def grouped(self, x_ND: Tensor, end_E: Tensor) -> Tensor:
        """Each expert on its own rows of `x_ND`, sorted by expert, those of expert e before row `end_E[e]` (N, D).

        Copies nothing to the host. Rows after the last expert's hold anything, also NaN.
        """
        dtype, end_E = product_dtype(x_ND), end_E.to(torch.int32)
        h_NF = self.activation(F.grouped_mm(x_ND.to(dtype), self.w_in_EDF.to(dtype), offs=end_E))
        return F.grouped_mm(self.dropout(h_NF).to(dtype), self.w_out_EFD.to(dtype), offs=end_E)

    def ragged(self, x_ND: Tensor, loads: Sequence[int]) -> Tensor:
        """Each expert on its own rows of `x_ND`, sorted by expert (N, D), one expert after the other."""
        dtype, pieces = product_dtype(x_ND), _pieces(loads, x_ND.device)
        h_NF = self.activation(_RaggedProduct.apply(x_ND.to(dtype), self.w_in_EDF.to(dtype), pieces))  # type: ignore[no-untyped-call]
        y_ND: Tensor = _RaggedProduct.apply(self.dropout(h_NF).to(dtype), self.w_out_EFD.to(dtype), pieces)  # type: ignore[no-untyped-call]
        return y_ND


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix product of `x` runs: that of autocast, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _batched(x_ECI: Tensor, w_EIO: Tensor) -> Tensor:
    """Each expert's rows times its matrix (E, C, O), in the type of autocast."""
    dtype = product_dtype(x_ECI)
    if dtype != torch.float32 == w_EIO.dtype and devices.multiplies_into_float32(x_ECI.device):
        y_ECO: Tensor = _MixedProduct.apply(x_ECI.to(dtype), w_EIO)  # type: ignore[no-untyped-call]
        return y_ECO
    return torch.bmm(x_ECI, w_EIO)


class _MixedProduct(torch.autograd.Function):
    """Batched products in bf16 of float32 weights, whose gradient is summed and written in float32.

    Autocast would round it to bf16 and then copy all of it: with 64 experts that took an eighth of the layer's time.
    """

    @staticmethod
    def forward(ctx: Any, x_ECI: Tensor, w_EIO: Tensor) -> Tensor:
        low_EIO = w_EIO.to(x_ECI.dtype)
        ctx.save_for_backward(x_ECI, low_EIO)
        return torch.bmm(x_ECI, low_EIO)

    @staticmethod
    def backward(ctx: Any, grad_ECO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x_ECI, low_EIO), (of_x, of_w) = ctx.saved_tensors, ctx.needs_input_grad
        grad_EIO = torch.bmm(x_ECI.mT, grad_ECO, out_dtype=torch.float32) if of_w else None
        return torch.bmm(grad_ECO, low_EIO.mT) if of_x else None, grad_EIO


def _pieces(loads: Sequence[int], device: torch.device) -> list[Share]:
    """Each expert and its rows: in one piece, or on a CPU in two, the largest multiple of 64 and the rest.

    oneDNN compiles a bf16 kernel for each shape and keeps the last thousand. Loads differ from step to step: without
    the split, compilation took four fifths of a dropless layer's time.
    """
    pieces, start = [], 0
    for expert, load in enumerate(loads):
        rest = load % 64 if devices.is_cpu(device) else 0
        for rows in (load - rest, rest):
            if rows:
                pieces.append((expert, slice(start, start + rows)))
                start += rows
    return pieces


def _end(pieces: Sequence[Share]) -> int:
    """The number of rows that pieces cover."""
    return pieces[-1][1].stop if pieces else 0


class _RaggedProduct(torch.autograd.Function):
    """Each piece's rows times its expert's matrix (N, O); the pieces follow each other, and rows after them give 0.

    One autograd node for all experts, which write to their own rows: nothing is split, joined or added up.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, w_EIO: Tensor, pieces: Sequence[Share]) -> Tensor:
        ctx.save_for_backward(x_NI, w_EIO)
        ctx.pieces = pieces
        y_NO = x_NI.new_empty(x_NI.shape[0], w_EIO.shape[2])
        y_NO[_end(pieces) :] = 0.0  # rows of no expert, which nobody reads, must stay finite
        for expert, rows in pieces:
            torch.mm(x_NI[rows], w_EIO[expert], out=y_NO[rows])
        return y_NO

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x_NI, w_EIO), (of_x, of_w, _) = ctx.saved_tensors, ctx.needs_input_grad
        grad_x_NI, grad_w_EIO = torch.empty_like(x_NI) if of_x else None, torch.zeros_like(w_EIO) if of_w else None
        if grad_x_NI is not None:
            grad_x_NI[_end(ctx.pieces) :] = 0.0
        for expert, rows in ctx.pieces:
            if grad_x_NI is not None:
                torch.mm(grad_NO[rows], w_EIO[expert].T, out=grad_x_NI[rows])
            if grad_w_EIO is not None:
                torch.addmm(grad_w_EIO[expert], x_NI[rows].T, grad_NO[rows], out=grad_w_EIO[expert])
        return grad_x_NI, grad_w_EIO, None
