"""Muon: momentum orthogonalised, matrices of a shape in one batch, and stacks of experts in turns."""

from __future__ import annotations

from abc import abstractmethod
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


class _Muon(Optimizer):
    """What both kinds share; each says how a group of parameters moves.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Nesterov momentum,
    decoupled weight decay, and a step scaled by sqrt(max(1, fan-out / fan-in)) as there.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
        **others: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum} | others)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            self._step(group)
        return loss

    @abstractmethod
    def _step(self, group: dict[str, Any]) -> None:
        """Moves the parameters of a group."""

    def _take_in(self, parameter: Tensor, momentum: float) -> None:
        """Lets the mean gradient know this one."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad.lerp(self.state[parameter]["momentum_buffer"], momentum)


class BatchedMuon(_Muon):
    """`torch.optim.Muon` for the (O, I) of `nn.Linear`, all of a shape at once: small products one by one wait."""

    def _step(self, group: dict[str, Any]) -> None:
        of_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                of_shape.setdefault(parameter.shape, []).append(parameter)
        for (fan_out, fan_in), parameters in of_shape.items():
            for parameter in parameters:
                self._take_in(parameter, group["momentum"])
            nesterov = torch.stack([self._nesterov(parameter, group["momentum"]) for parameter in parameters])
            updates = orthogonalize(nesterov, dtype=self.dtype)
            for parameter, update in zip(parameters, updates, strict=True):
                _move(parameter, update, lr=group["lr"], decay=group["weight_decay"], widening=fan_out / fan_in)


class StackedMuon(_Muon):
    """The same for parameters (E, I, O), stacks of matrices that multiply from the right.

    Momentum takes in every gradient, but a stack moves in every `every`-th step only, `every` times as far, and stacks
    take turns: orthogonalising all experts in each step would cost a multiple of what it costs a dense model. The turns
    are ours.
    """

    def __init__(self, params: Iterable[Tensor], *, every: int = 1, **others: Any) -> None:
        super().__init__(params, every=every, **others)

    def _step(self, group: dict[str, Any]) -> None:
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            self._take_in(parameter, group["momentum"])
            state = self.state[parameter]
            state["step"] = state.get("step", place) + 1
            if state["step"] % group["every"] != 0:
                continue
            update = orthogonalize(self._nesterov(parameter, group["momentum"]), dtype=self.dtype)
            lr, (fan_in, fan_out) = group["lr"] * group["every"], parameter.shape[-2:]
            _move(parameter, update, lr=lr, decay=group["weight_decay"], widening=fan_out / fan_in)


def _move(parameter: Tensor, update: Tensor, *, lr: float, decay: float, widening: float) -> None:
    parameter.mul_(1 - lr * decay)
    parameter.add_(update, alpha=-lr * max(1.0, widening) ** 0.5)
