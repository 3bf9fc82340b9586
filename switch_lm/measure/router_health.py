"""The health of routers: their gradients from the language and balance losses, and their use of experts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.measure.metrics import router_entropy
from switch_lm.model.losses import language_loss
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.routing import Routing

# The smallest ratio of the language loss's gradients on the router and on the experts' second matrices that counts as
# learning. Trained routers have 0.1 and more; a gate that is constant up to rounding has 1e-8.
NO_GRADIENT = 1e-6


@dataclass(frozen=True)
class RouterHealth:
    """The router of one Switch layer on some text."""

    num_experts: int
    even_share: float  # of the tokens that each expert gets with an even load: choices per token / num_experts
    language_gradient: float  # norm of d cross entropy / d W_r, or of all the router's weights
    expert_gradient: float  # norm of d cross entropy / d w_out of all experts: the scale of the one above
    balance_gradient: float  # norm of alpha x d balance loss / d W_r
    cosine: float | None  # between the two gradients; negative: they oppose each other; None if one of them is 0
    entropy: float  # of the router's probabilities, nats, mean over tokens
    gate_mean: float
    gate_spread: float  # standard deviation over choices
    max_share: float  # of the tokens that the busiest expert gets
    busiest: int  # the number of that expert
    idle_share: float  # of the experts that get no token
    can_learn: bool = True  # whether the router has weights that the language loss should reach

    @property
    def learns(self) -> bool:
        """Whether the language loss reaches the router; always true where there is nothing to learn."""
        nothing_to_learn = self.num_experts == 1 or not self.can_learn
        return nothing_to_learn or not self.language_gradient <= NO_GRADIENT * self.expert_gradient

    def scalars(self) -> dict[str, float]:
        """The figures by name, without those that are None."""
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
    with torch.enable_grad():
        output = model(ids_BS)
        cross_entropy = language_loss(output.logits, target_BS)
        balance = alpha * model.aux_losses(output.routings)["balance"]
        result = []
        for layer, routing in zip(layers, output.routings, strict=True):
            weights = [weight for weight in layer.router.parameters() if weight.requires_grad]
            *of_router, of_experts = _gradients(cross_entropy, [*weights, layer.experts.w_out_EFD])
            flat = [torch.cat([g.flatten() for g in grads] or [of_experts.new_zeros(0)])
                    for grads in (of_router, _gradients(balance, weights))]  # fmt: skip
            can_learn = layer.router.promise(training=True, limited=False).learns
            result.append(_health(routing, flat[0], of_experts, flat[1], can_learn=can_learn))
    return result


def _gradients(loss: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a loss; zeros where it does not depend on a weight."""
    if not loss.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    if not weights:
        return []
    return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)


@torch.no_grad()
def _health(
    routing: Routing, language_N: Tensor, expert_EFD: Tensor, balance_N: Tensor, *, can_learn: bool
) -> RouterHealth:
    norms = language_N.norm().item(), balance_N.norm().item()
    load_E, num_tokens, num_experts = routing.load_E, routing.num_tokens, routing.num_experts
    gate_N = routing.gate_N if routing.used_N is None else routing.gate_N[routing.used_N]
    gate_N = gate_N if gate_N.numel() else gate_N.new_zeros(1)  # where no expert takes a token
    return RouterHealth(
        num_experts=num_experts,
        even_share=routing.num_assignments.item() / num_tokens / num_experts,
        language_gradient=norms[0],
        expert_gradient=expert_EFD.norm().item(),
        balance_gradient=norms[1],
        cosine=(language_N * balance_N).sum().item() / math.prod(norms) if all(norms) else None,
        entropy=router_entropy(routing).item(),
        gate_mean=gate_N.mean().item(),
        gate_spread=gate_N.std(correction=0).item(),
        max_share=load_E.max().item() / num_tokens,
        busiest=int(load_E.argmax()),
        idle_share=(load_E == 0).float().mean().item(),
        can_learn=can_learn,
    )
