"""The cases of the layer benchmark, and what is timed of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.peers import LayerSizes

Call = Callable[[Tensor], Tensor]
Draw = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cell(LayerSizes):
    """One case of the layer."""

    precision: str
    skewed: bool

    @property
    def name(self) -> str:
        router = "skewed" if self.skewed else "fresh"
        shape = f"{self.num_tokens} x {self.d_model} x {self.d_ff}"
        return f"{shape}, {self.precision}, {self.num_experts} experts, {router} router"

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def draw(self, number: int) -> Draw:
        """Input number `number` (B, S, D), and the gradient of the output."""
        generator = torch.Generator().manual_seed(number + 2**32)
        shape = (self.rows, self.positions, self.d_model)
        x_BSD, grad_BSD = (torch.randn(shape, generator=generator) for _ in range(2))
        if self.skewed:
            x_BSD[..., 0] = torch.randint(2, shape[:2], generator=generator) * 2.0 - 1.0
        return x_BSD, grad_BSD


def block(cell: Cell, layer: nn.Module, call: Call | None = None) -> Callable[[Draw], None]:
    """Forward and backward on one draw; `call`, if the output of the layer is not a tensor (B, S, D)."""
    parameters, forward = tuple(layer.parameters()), call or layer

    def run(draw: Draw) -> None:
        for parameter in parameters:
            parameter.grad = None
        x_BSD = draw[0].detach().requires_grad_()
        with cell.autocast():
            y_BSD = forward(x_BSD)
        y_BSD.backward(draw[1].to(y_BSD.dtype))
        if x_BSD.grad is None:
            raise RuntimeError("no gradient reached the input")

    return run
