"""Muon: orthogonalised momentum; matrices of one shape as a batch, stacks of experts in turns."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from switch_lm.optim.adamw import AdamWRecipe
from switch_lm.optim.options import NEWTON_SCHULZ_ROUNDS, MuonOptions

# The coefficients a, b, c of the quintic Newton-Schulz iteration, as in Keller Jordan's Muon and torch.optim.Muon.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7


def orthogonalize(m_EIO: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximately U V' of the singular value decomposition of each matrix (..., I, O): singular values near 1.

    An iteration multiplies x by a + b G + c G^2 of its Gram matrix G = x x'. These factors commute, so the iterations
    run on G alone, the square of the shorter side, and x is multiplied once per round. After three iterations G is
    computed again, before the rounding of bf16, which makes negative eigenvalues grow, reaches the result.
    Source: Jordan et al., 2024.
    """
    x = m_EIO.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for iterations in NEWTON_SCHULZ_ROUNDS:
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
    """The shared part: Nesterov momentum, decoupled weight decay, updates scaled by sqrt(max(1, fan-out / fan-in)).

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
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
        """Updates the parameters of a group."""

    def _averages(self, parameters: list[Tensor], momentum: float) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients, and their moving averages with these included; one launch for all on a GPU."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        return grads, averages

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> Sequence[Tensor]:
        grads, averages = self._averages(parameters, momentum)
        return torch._foreach_lerp(grads, averages, momentum)


class BatchedMuon(_Muon):
    """`torch.optim.Muon` for the (O, I) matrices of `nn.Linear`, with all matrices of one shape as one batch."""

    def _step(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict[torch.Size, list[Tensor]](list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for (fan_out, fan_in), parameters in by_shape.items():
            nesterov = self._nesterov(parameters, group["momentum"])
            updates = orthogonalize(torch.stack(list(nesterov)), dtype=self.dtype)
            _move(parameters, list(updates), lr=group["lr"], decay=group["weight_decay"], widening=fan_out / fan_in)


class StackedMuon(_Muon):
    """Muon for parameters (E, I, O): stacks of matrices that multiply from the right.

    Momentum includes every gradient, but a stack is updated only every `every` steps, `every` times as far, and stacks
    take turns: orthogonalising all experts in each step would cost several times as much as in a dense model. The
    turns are not in the source.
    """

    def __init__(self, params: Iterable[Tensor], *, every: int = 1, **others: Any) -> None:
        super().__init__(params, every=every, **others)

    def _step(self, group: dict[str, Any]) -> None:
        momentum, every = group["momentum"], group["every"]
        for turn, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            (grad,), (average,) = self._averages([parameter], momentum)
            state = self.state[parameter]
            state["step"] = state.get("step", turn) + 1
            if state["step"] % every == 0:
                _, fan_in, fan_out = parameter.shape
                update = orthogonalize(grad.lerp(average, momentum), dtype=self.dtype)
                lr, decay = group["lr"] * every, group["weight_decay"]
                _move([parameter], [update], lr=lr, decay=decay, widening=fan_out / fan_in)


def _move(parameters: list[Tensor], updates: list[Tensor], *, lr: float, decay: float, widening: float) -> None:
    torch._foreach_mul_(parameters, 1 - lr * decay)
    torch._foreach_add_(parameters, updates, alpha=-lr * max(1.0, widening) ** 0.5)


class MuonRecipe(AdamWRecipe):
    """Muon on the hidden matrices, AdamW on the rest: routers, embedding, head and norms."""

    name = "muon"
    Options = MuonOptions
    options: MuonOptions

    def optimizers(self) -> Sequence[Optimizer]:
        options, hidden = self.options, self.model.hidden_matrices()
        optimizers: list[Optimizer] = [self.adamw(self.all_but(hidden))]
        how: dict[str, Any] = {
            "lr": options.matrix_lr,
            "weight_decay": options.matrix_weight_decay,
            "momentum": options.momentum,
            "dtype": torch.bfloat16 if self.precision == "bf16" else hidden[0].dtype,
        }
        if matrices := [parameter for parameter in hidden if parameter.dim() == 2]:
            optimizers.append(BatchedMuon(matrices, **how))
        if stacks := [parameter for parameter in hidden if parameter.dim() == 3]:
            optimizers.append(StackedMuon(stacks, **how, every=options.steps_between_moves(len(stacks[0]))))
        return optimizers
