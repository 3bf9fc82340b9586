"""What routings mean in numbers: named scalars and counts. Pure, without a logger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.routing import Routing

# The overview's charts: their titles, and the tags they draw.
OF_EVERY_RUN = {
    "validation loss: whole split and window losses": [
        "^val/loss$",
        "^val/window_loss$",
        "^val/window_loss_train_capacity$",
        "^val/window_loss_generation$",
    ],
}
OF_ROUTED_RUNS = {
    "dropped share, by layer": [r"^moe/layer_\d+/dropped_share$"],
    "balance loss, all layers (1 a layer: even)": ["^train/balance_loss$"],
    "router entropy, by layer": [r"^moe/layer_\d+/router_entropy$"],
    "mean gate, by layer": [r"^moe/layer_\d+/mean_gate$"],
    "router's gradient from the language loss, by layer": [r"^health/layer_\d+/language_gradient$"],
}


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
    """TensorBoard's custom charts: first an overview, then one a Switch layer and quantity with a line an expert.

    TensorBoard merges the layouts of all runs by their titles: no title depends on anything but the layer's number.
    """
    overview = OF_EVERY_RUN | (OF_ROUTED_RUNS if num_layers else {})
    titles = {"load": "tokens selected", "kept": "tokens kept", "mean_prob": "mean probability P"}
    layout: dict[str, dict[str, list[object]]] = {
        "overview": {title: ["Multiline", tags] for title, tags in overview.items()}
    }
    for layer in range(num_layers):
        name = f"layer {layer:02d}"
        layout[name] = {
            f"{name}: {title}, by expert": ["Multiline", [rf"^moe/layer_{layer:02d}/{quantity}/expert_\d+$"]]
            for quantity, title in titles.items()
        }
    return layout
