"""Muon: momentum orthogonalised, matrices of a shape in one batch, and stacks of experts in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Quintic Newton-Schulz coefficients of Keller Jordan's Muon, torch.optim.Muon's defaults too.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = (3, 2)  # its five iterations
EPSILON = 1e-7


def orthogonalize(m_EIO: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """U V' of the singular value decomposition of each (I, O) matrix, approximately: singular values near 1.

    An iteration multiplies x by a + b G + c G^2 of its Gram matrix G = x x', which commutes with all that follow: so
    they run on G alone, the shorter side's square, and x is touched once a round. After three iterations G is taken
    anew, before bf16's rounding (a negative eigenvalue grows each time) reaches the result.
    """
    x = m_EIO.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for iterations in ROUNDS:
        gram = x @ x.mT
        product = factor = _factor(gram)
        for _ in range(iterations - 1):
            gram = factor @ (gram @ factor)
            factor = _factor(gram)
            product = factor @ product
        x = product @ x
    return x.mT if tall else x


def _factor(gram_EMM: Tensor) -> Tensor:
    """a + b G + c G^2 of each symmetric matrix."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.baddbmm(gram_EMM, gram_EMM, gram_EMM, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


class BatchedMuon(Optimizer):
    """`torch.optim.Muon` for the (O, I) of `nn.Linear`, all of a shape at once: small products one by one mostly wait.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Nesterov momentum,
    decoupled weight decay, and a step scaled by sqrt(max(1, O / I)) as there.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in of_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        nesterov = []
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
            nesterov.append(grad.lerp(momentum, group["momentum"]))
        fan_out, fan_in = parameters[0].shape
        updates = orthogonalize(torch.stack(nesterov), dtype=self.dtype)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * max(1.0, fan_out / fan_in) ** 0.5)


class StackedMuon(Optimizer):
    """The same for parameters (E, I, O), stacks of matrices that multiply from the right.

    Momentum takes in every gradient, but a stack moves in every `every`-th step only, `every` times as far, and stacks
    take turns: orthogonalising all experts in each step would cost a multiple of what it costs a dense model. The turns
    are ours.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        every: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "every": every})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, place)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"], state["step"] = torch.zeros_like(parameter), place
        momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        state["step"] += 1
        if state["step"] % group["every"] != 0:
            return
        update = orthogonalize(grad.lerp(momentum, group["momentum"]), dtype=self.dtype)
        fan_in, fan_out = parameter.shape[-2:]
        lr = group["lr"] * group["every"]
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update, alpha=-lr * max(1.0, fan_out / fan_in) ** 0.5)
