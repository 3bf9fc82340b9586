"""The health of routers: their gradients from the language and balance losses, and their use of experts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.measure.metrics import router_entropy
from switch_lm.model.losses import language_loss, load_balancing_loss, summed
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.routing import Routing

# The smallest ratio of the language loss's gradients on the router and on the experts' second matrices that counts as
# learning. Trained routers have 0.1 and more; a gate that is constant up to rounding has 1e-8.
NO_GRADIENT = 1e-6


@dataclass(frozen=True)
class RouterHealth:
    """The router of one Switch layer on some text."""

    num_experts: int
    even_share: float  # of the tokens that each expert gets with an even load: top_k / num_experts
    language_gradient: float  # norm of d cross entropy / d W_r
    expert_gradient: float  # norm of d cross entropy / d w_out of all experts: the scale of the one above
    balance_gradient: float  # norm of alpha x d balance loss / d W_r
    cosine: float | None  # between the two gradients; negative: they oppose each other; None if one of them is 0
    entropy: float  # of the router's probabilities, nats, mean over tokens
    gate_mean: float
    gate_spread: float  # standard deviation over choices
    max_share: float  # of the tokens that the busiest expert gets
    busiest: int  # the number of that expert
    idle_share: float  # of the experts that get no token

    @property
    def learns(self) -> bool:
        """Whether the language loss reaches the router; always true for a single expert, which has nothing to learn."""
        return self.num_experts == 1 or not self.language_gradient <= NO_GRADIENT * self.expert_gradient

    def scalars(self) -> dict[str, float]:
        """The figures to log, by name, without those that are None."""
        values = {
            "language_gradient": self.language_gradient,
            "balance_gradient": self.balance_gradient,
            "gradient_cosine": self.cosine,
            "entropy": self.entropy,
            "gate_mean": self.gate_mean,
            "gate_spread": self.gate_spread,
            "max_share": self.max_share,
            "idle_share": self.idle_share,
        }
        return {name: value for name, value in values.items() if value is not None}


def router_health(model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, *, alpha: float) -> list[RouterHealth]:
    """One entry per Switch layer, from a forward and backward pass over ids and targets (B, S) in the model's mode.

    No parameter's `.grad` changes. The balance loss reaches the router through P alone, the language loss through the
    gates alone (Switch Transformers, eq. 2 and 4).
    """
    layers = model.switch_layers
    if not layers:
        return []
    routers, experts = [layer.w_router_DE for layer in layers], [layer.experts.w_out_EFD for layer in layers]
    with torch.enable_grad():
        output = model(ids_BS)
        language = _gradients(language_loss(output.logits, target_BS), routers + experts)
        balance = _gradients(alpha * summed(load_balancing_loss, output.routings), routers)
    halves = language[: len(layers)], language[len(layers) :]
    return [_health(*parts) for parts in zip(output.routings, *halves, balance, strict=True)]


def _gradients(loss: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a loss; zeros where it does not depend on a weight."""
    if not loss.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)


@torch.no_grad()
def _health(routing: Routing, language_DE: Tensor, expert_EFD: Tensor, balance_DE: Tensor) -> RouterHealth:
    norms = language_DE.norm().item(), balance_DE.norm().item()
    load_E, gate_TK = routing.load_E, routing.gate_TK
    num_tokens, num_experts = routing.probs_TE.shape
    return RouterHealth(
        num_experts=num_experts,
        even_share=routing.expert_TK.shape[1] / num_experts,
        language_gradient=norms[0],
        expert_gradient=expert_EFD.norm().item(),
        balance_gradient=norms[1],
        cosine=(language_DE * balance_DE).sum().item() / math.prod(norms) if all(norms) else None,
        entropy=router_entropy(routing).item(),
        gate_mean=gate_TK.mean().item(),
        gate_spread=gate_TK.std(correction=0).item(),
        max_share=load_E.max().item() / num_tokens,
        busiest=int(load_E.argmax()),
        idle_share=(load_E == 0).float().mean().item(),
    )
