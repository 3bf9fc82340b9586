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
        loads = load_E.tolist()
        parts = [
            self.dropout(self.activation(x_nD @ self.w_in_EDF[e])) @ self.w_out_EFD[e]
            for e, x_nD in enumerate(x_ND.split(loads))
            if loads[e]
        ]
        return torch.cat(parts)
