"""The stacked expert feed-forwards, and the two ways of running them: padded to a capacity, or ragged without one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0) squared (Primer, So et al., 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "relu_squared": relu_squared}


class Experts(nn.Module):
    """E independent two-layer feed-forwards without bias; weights stacked expert first: (E, D, F) and (E, F, D)."""

    def __init__(self, *, num_experts: int, d_model: int, d_ff: int, activation: str = "relu") -> None:
        super().__init__()
        self.w_in_EDF = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.w_out_EFD = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.activation = ACTIVATIONS[activation]

    def padded(self, x_ECD: Tensor) -> Tensor:
        """Every expert on its C slots: two batched products, the same shape whatever the router did."""
        return torch.bmm(self.activation(torch.bmm(x_ECD, self.w_in_EDF)), self.w_out_EFD)

    def ragged(self, x_ND: Tensor, load_E: Tensor) -> Tensor:
        """Every expert on its own rows of `x_ND`, which is sorted by expert. One copy of the loads to the host."""
        loads = load_E.tolist()
        parts = [
            self.activation(x_nD @ self.w_in_EDF[e]) @ self.w_out_EFD[e]
            for e, x_nD in enumerate(x_ND.split(loads))
            if loads[e]
        ]
        return torch.cat(parts)
