"""What routings mean in numbers: named scalars and counts. Pure, without a logger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing


def dropped_choices(routing: Routing) -> Tensor:
    """How many choices found no place (a 0-d tensor)."""
    return (~routing.kept_TK).sum()


def router_entropy(routing: Routing) -> Tensor:
    """Mean entropy of p over tokens, in nats: log E for a router that knows nothing, 0 for one that is sure."""
    return -(routing.probs_TE * routing.probs_TE.clamp(min=1e-20).log()).sum(dim=-1).mean()


@dataclass(frozen=True)
class RoutingSums:
    """What the router calls of one layer add up to. All calls have the same number of tokens."""

    load_E: Tensor  # choices that selected each expert
    kept_E: Tensor  # choices that each expert computed
    dropped: Tensor  # choices without a place
    mean_prob_E: Tensor  # this and the next two: the sum of each call's mean
    entropy: Tensor
    mean_gate: Tensor
    choices: int
    places: int  # what the experts compute, filled or not
    calls: int = 1

    @classmethod
    def of(cls, routing: Routing) -> RoutingSums:
        """One router call."""
        choices, num_experts = routing.expert_TK.numel(), routing.load_E.numel()
        places = choices if routing.capacity is None else num_experts * routing.num_groups * routing.capacity
        means = routing.mean_prob_E, router_entropy(routing), routing.gate_TK.mean()
        return cls(routing.load_E, routing.kept_E, dropped_choices(routing), *means, choices, places)

    def __add__(self, other: RoutingSums) -> RoutingSums:
        return RoutingSums(*map(add, vars(self).values(), vars(other).values()))


def layer_scalars(sums: RoutingSums) -> dict[str, Tensor]:
    """One layer's figures by tag, as 0-d tensors; the tag of a single expert's figure has the expert's number."""
    load_E, kept_E, mean_prob_E = sums.load_E.float(), sums.kept_E.float(), sums.mean_prob_E / sums.calls
    dropped = sums.dropped.float()
    scalars = {
        "dropped": dropped,
        "dropped_share": dropped / sums.choices,
        "padded_share": 1.0 - sums.kept_E.sum() / sums.places,
        "load_max_over_mean": load_E.max() / load_E.mean(),
        "load_cv": load_E.std(correction=0) / load_E.mean(),
        "router_entropy": sums.entropy / sums.calls,
        "mean_gate": sums.mean_gate / sums.calls,
    }
    for e in range(load_E.numel()):
        scalars[f"load/expert_{e:02d}"] = load_E[e]
        scalars[f"kept/expert_{e:02d}"] = kept_E[e]
        scalars[f"mean_prob/expert_{e:02d}"] = mean_prob_E[e]
    return scalars


def routing_scalars(layers: Sequence[RoutingSums]) -> dict[str, float]:
    """All layers' figures by tag `moe/layer_NN/...`, copied to the host at once."""
    scalars = {
        f"moe/layer_{layer:02d}/{name}": value
        for layer, sums in enumerate(layers)
        for name, value in layer_scalars(sums).items()
    }
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([value.float() for value in scalars.values()]).tolist(), strict=True))
