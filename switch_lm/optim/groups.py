"""Parameter groups: which optimizer updates which parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from switch_lm.optim.muon import BatchedMuon, StackedMuon
from switch_lm.optim.options import MuonOptions


class JointOptimizer(Optimizer):
    """Several optimizers behind the interface of one, for the schedule, gradient clipping and the checkpoint."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.optimizers[0].step(closure)  # AdamW, which runs the closure with gradients
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is an attention, feed-forward or expert matrix, and no router, embedding, head or norm."""
    return parameter.dim() >= 2 and name.startswith("blocks.") and "router" not in name


def build_optimizer(model: nn.Module, config: Any, *, precision: str) -> JointOptimizer:
    """AdamW for all parameters; or, with `name=muon`, Muon for the hidden matrices and AdamW for the rest.

    Only matrices decay. `precision`: bf16 or fp32, in which Muon computes its products.
    """
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (hidden if isinstance(config, MuonOptions) and is_hidden_matrix(name, parameter) else others).append(parameter)
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)]
    if not isinstance(config, MuonOptions):
        return JointOptimizer(optimizers)
    rates: dict[str, Any] = {
        "lr": config.matrix_lr,
        "weight_decay": config.matrix_weight_decay,
        "momentum": config.momentum,
        "dtype": torch.bfloat16 if precision == "bf16" else torch.float32,
    }
    if matrices := [p for p in hidden if p.dim() == 2]:
        optimizers.append(BatchedMuon(matrices, **rates))
    if stacks := [p for p in hidden if p.dim() == 3]:
        optimizers.append(StackedMuon(stacks, **rates, every=config.steps_between_moves(stacks[0].shape[0])))
    return JointOptimizer(optimizers)
