"""The language loss, and the sum of a router's loss over all Switch layers; both 0-d."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.routers.routing import Routing, at_least_float32


def language_loss(logits: Tensor, target_BS: Tensor) -> Tensor:
    """Mean cross entropy in nats per character, of logits (B, S, V) and the ids of the next characters (B, S)."""
    return F.cross_entropy(at_least_float32(logits.flatten(0, 1)), target_BS.flatten())


def summed(loss: Callable[[Routing], Tensor], routings: Sequence[Routing]) -> Tensor:
    """The sum of a loss over all Switch layers; 0 for a dense model."""
    return torch.stack([loss(routing) for routing in routings]).sum() if routings else torch.zeros(())
