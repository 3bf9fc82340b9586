"""The feed-forwards: a dense one, and the stacked experts with their two ways of running, padded or ragged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        self.dropout = nn.Dropout(dropout)  # between the matrices: "expert dropout" (Switch Transformers, 2.4)

    def padded(self, x_ECD: Tensor) -> Tensor:
        """Every expert on its C slots: two batched products, the same shape whatever the router did."""
        return torch.bmm(self.dropout(self.activation(torch.bmm(x_ECD, self.w_in_EDF))), self.w_out_EFD)

    def ragged(self, x_ND: Tensor, load_E: Tensor) -> Tensor:
        """Every expert on its own rows of `x_ND`, which is sorted by expert. One copy of the loads to the host."""
        pieces = [(e, rows) for e, load in enumerate(load_E.tolist()) for rows in _pieces(load, x_ND.device.type)]
        dtype = product_dtype(x_ND)
        # Cast and taken apart as a whole: one by one each expert's gradient would be as large as all experts'.
        w_in, w_out = self.w_in_EDF.to(dtype).unbind(), self.w_out_EFD.to(dtype).unbind()
        parts = x_ND.to(dtype).split([rows for _, rows in pieces])
        return torch.cat(
            [
                self.dropout(self.activation(x_nD @ w_in[e])) @ w_out[e]
                for (e, _), x_nD in zip(pieces, parts, strict=True)
            ]
        )


def product_dtype(x: Tensor) -> torch.dtype:
    """What `x` is cast to in a matrix product: autocast's precision, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _pieces(load: int, device: str) -> list[int]:
    """The rows of one expert in one product, or two on a CPU: the multiple of 64 and the rest.

    oneDNN compiles a bf16 kernel for each shape and keeps the last thousand. Loads differ in every step: as they are,
    compiling took four fifths of a dropless layer's time.
    """
    rest = load % 64 if device == "cpu" else 0
    return [rows for rows in (load - rest, rest) if rows]
