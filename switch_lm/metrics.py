"""What routings mean in numbers: named scalars and counts. Pure, without a logger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.routing import Routing


def dropped_choices(routing: Routing) -> Tensor:
    """How many choices found no place (a 0-d tensor)."""
    return (~routing.kept_TK).sum()


def padded_share(routing: Routing) -> Tensor:
    """Share of the computed places that held no token (a 0-d tensor)."""
    num_choices, num_experts = routing.expert_TK.numel(), routing.load_E.numel()
    places = num_choices if routing.capacity is None else num_experts * routing.num_groups * routing.capacity
    return 1.0 - routing.kept_E.sum() / places


def router_entropy(routing: Routing) -> Tensor:
    """Mean entropy of p over tokens, in nats: log E for a router that knows nothing, 0 for one that is sure."""
    return -(routing.probs_TE * routing.probs_TE.clamp(min=1e-20).log()).sum(dim=-1).mean()


def layer_scalars(routing: Routing) -> dict[str, Tensor]:
    """One layer's figures by tag, as 0-d tensors; those of single experts carry the expert's number."""
    load_E, kept_E, mean_prob_E = routing.load_E.float(), routing.kept_E.float(), routing.mean_prob_E
    dropped = dropped_choices(routing).float()
    scalars = {
        "dropped": dropped,
        "dropped_share": dropped / routing.expert_TK.numel(),
        "padded_share": padded_share(routing),
        "load_max_over_mean": load_E.max() / load_E.mean(),
        "load_cv": load_E.std(correction=0) / load_E.mean(),
        "router_entropy": router_entropy(routing),
        "mean_gate": routing.gate_TK.mean(),
    }
    for e in range(load_E.numel()):
        scalars[f"load/expert_{e:02d}"] = load_E[e]
        scalars[f"kept/expert_{e:02d}"] = kept_E[e]
        scalars[f"mean_prob/expert_{e:02d}"] = mean_prob_E[e]
    return scalars


@torch.no_grad()
def routing_scalars(routings: Sequence[Routing]) -> dict[str, float]:
    """All layers' figures by tag `moe/layer_NN/...`, brought to the host in one copy."""
    scalars = {
        f"moe/layer_{layer:02d}/{name}": value
        for layer, routing in enumerate(routings)
        for name, value in layer_scalars(routing).items()
    }
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([value.float() for value in scalars.values()]).tolist(), strict=True))


def chart_layout(num_layers: int) -> dict[str, dict[str, list[object]]]:
    """TensorBoard's custom charts: one a layer and quantity, with all experts as its lines."""
    titles = {"load": "tokens selected", "kept": "tokens kept", "mean_prob": "mean probability P"}
    return {
        f"layer {layer:02d}": {
            f"layer {layer:02d}: {title}, by expert": ["Multiline", [rf"^moe/layer_{layer:02d}/{quantity}/expert_\d+$"]]
            for quantity, title in titles.items()
        }
        for layer in range(num_layers)
    }
