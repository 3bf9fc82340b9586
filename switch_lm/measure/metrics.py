"""Figures of routings: counts, shares and named scalars, and the charts that show them. Pure, without a logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from switch_lm.routers.routing import Routing

SMALLEST = 1e-12  # below the mean load of any layer with an assignment
QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}  # over the experts of a layer


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats; infinity where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def dropped_choices(routing: Routing) -> Tensor:
    """How many choices are dropped, 0-d int64."""
    used_N = True if routing.used_N is None else routing.used_N
    return (~routing.kept_N & used_N).sum()


def num_choices(routing: Routing) -> int | Tensor:
    """How many choices there are, before dropping: a number where each token has K, otherwise 0-d int64."""
    return routing.token_N.numel() if routing.used_N is None else routing.num_assignments


def router_entropy(routing: Routing) -> Tensor:
    """Mean entropy of p over tokens in nats, 0-d: log E for a uniform router, 0 for a certain one."""
    return -(routing.probs_TE * routing.probs_TE.clamp(min=1e-20).log()).sum(dim=-1).mean()


class FirstChoice(NamedTuple):
    """Facts about the expert that stands for each of T tokens: of those it has, the one with the largest gate."""

    expert_T: Tensor  # E, one past the last expert, for a token without any
    gate_T: Tensor  # 0 without an expert
    second_T: Tensor  # the most probable other expert; -1 if there is no other
    second_probability_T: Tensor
    number_T: Tensor  # how many experts the token has


def first_choice(routing: Routing) -> FirstChoice:
    """The first choices of one router call, before dropping; of equal gates the first in the list counts."""
    none, gate_N = routing.num_experts, routing.gate_N.detach()
    index_TM = routing.first_TM(routing.choices_per_token or routing.num_experts)  # N: an entry for no expert
    gate_T1, place_T1 = pad(gate_N, (0, 1), value=-torch.inf)[index_TM].max(dim=1, keepdim=True)
    expert_T1 = pad(routing.expert_N, (0, 1), value=none)[index_TM.gather(1, place_T1)]
    others_TE = pad(routing.probs_TE, (0, 1), value=-1.0).scatter(1, expert_T1, -1.0)
    second_probability_T, second_T = others_TE.max(dim=1)
    return FirstChoice(
        expert_T1.squeeze(1),
        gate_T1.masked_fill(expert_T1 == none, 0.0).squeeze(1),
        second_T.masked_fill(second_probability_T < 0.0, -1),
        second_probability_T.clamp(min=0.0),
        (index_TM < gate_N.numel()).sum(dim=1),
    )


@dataclass(frozen=True)
class RoutingSums:
    """Sums over the router calls of one layer, all with the same number of tokens."""

    load_E: Tensor  # choices that selected each expert
    kept_E: Tensor  # choices that each expert computed
    dropped_E: Tensor  # choices that selected each expert and were dropped
    entropy: Tensor  # the sum of each call's mean
    choices: int | Tensor
    tokens: int
    calls: int = 1

    @classmethod
    def of(cls, routing: Routing) -> RoutingSums:
        """One router call."""
        counts = routing.load_E, routing.kept_E, routing.dropped_E
        return cls(*counts, router_entropy(routing), num_choices(routing), routing.num_tokens)

    def __add__(self, other: RoutingSums) -> RoutingSums:
        return RoutingSums(*map(add, vars(self).values(), vars(other).values()))


def layer_scalars(sums: RoutingSums, *, per_expert: bool = True) -> dict[str, Tensor]:
    """The figures of one layer by tag, as 0-d tensors. Tags of a single expert end in its number.

    Without `per_expert` five quantiles over the experts stand for them: of E sorted values, number (E - 1) q from 0 on,
    a straight line between two neighbours. Shares and ratios are 0 where no expert takes a token.
    """
    load_E, kept_E = sums.load_E.float(), sums.kept_E.float()
    mean_load, num_experts = load_E.mean().clamp(min=SMALLEST), load_E.numel()
    scalars = {
        "load_max_over_mean": load_E.max() / mean_load,
        "load_min_over_mean": load_E.min() / mean_load,
        "entropy_share": sums.entropy / sums.calls / math.log(max(2, num_experts)),
        "dropped_share": sums.dropped_E.sum() / torch.as_tensor(sums.choices).clamp(min=1),
    }
    if isinstance(sums.choices, Tensor):  # any number per token
        scalars["experts_per_token"] = sums.choices / sums.tokens
    of_experts = {"load": load_E, "kept": kept_E}
    if per_expert:
        each = range(num_experts)
        return scalars | {f"{name}/expert_{e:02d}": value_E[e] for e in each for name, value_E in of_experts.items()}
    value_E2 = torch.stack(list(of_experts.values()), dim=1)
    quantile_Q2 = value_E2.quantile(value_E2.new_tensor([*QUANTILES.values()]), dim=0)
    rows = zip(QUANTILES, quantile_Q2, strict=True)
    return scalars | {f"{name}/{q}": x for q, row in rows for name, x in zip(of_experts, row, strict=True)}


def routing_scalars(
    layers: Sequence[RoutingSums], blocks: Sequence[int], *, per_expert: bool = True
) -> dict[str, float]:
    """The figures of all layers by tag `moe/layer_NN/...`, NN their block, copied to the host at once."""
    scalars = {
        f"moe/layer_{block:02d}/{name}": value
        for block, sums in zip(blocks, layers, strict=True)
        for name, value in layer_scalars(sums, per_expert=per_expert).items()
    }
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack([value.float() for value in scalars.values()]).tolist(), strict=True))
