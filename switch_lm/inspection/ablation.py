"""Are the experts different? What the loss becomes when they are changed, and how alike their outputs are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from switch_lm.inspection.similarity import Similarity, similarities
from switch_lm.model.experts import Experts
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.probe import Probe, Say, silent, switch_layers
from switch_lm.probe.replay import recorded
from switch_lm.stats.clusters import mean, nats
from switch_lm.stats.intervals import Estimate

WINDOWS = 32
PAIRS = 28  # of each layer: all of eight experts
PAIRS_SHOWN = 6
Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerAblation:
    """What each change of one layer's experts adds to the loss, in nats per character; the router stays as it is."""

    off: tuple[Estimate, ...]  # the expert gives 0
    swapped: dict[Pair, Estimate]  # the two change places
    averaged: Estimate  # all give the mean of their outputs, times the gate: one dense feed-forward
    all_off: Estimate  # the whole layer gives 0: what there is to lose
    similarity: Similarity

    def findings(self) -> list[str]:
        """What each expert is worth, which pairs are interchangeable, what it is worth that they differ."""
        return [*self._of_off(), *self._of_swapped(), *self._of_all()]

    def _of_off(self) -> list[str]:
        share_E = self.similarity.share_E
        idle = [e for e, share in enumerate(share_E) if share == 0.0]
        needless = [e for e, change in enumerate(self.off) if not _costs(change) and e not in idle]
        costliest = max(range(len(self.off)), key=lambda e: self.off[e].mean)
        if not _costs(self.off[costliest]):
            return ["switching off any one expert has no visible cost"]
        found = [
            f"switching off expert {costliest} costs most, {nats(self.off[costliest])}; it has {share_E[costliest]:.0%}"
        ]
        found += [f"without a token of the probe: expert {_list(idle)}"] if idle else []
        return found + ([f"switching off expert {_list(needless)} has no visible cost"] if needless else [])

    def _of_swapped(self) -> list[str]:
        if not self.swapped:
            return []
        alike = [f"{i} and {j}" for (i, j), change in self.swapped.items() if not _costs(change)]
        mean_cost = sum(change.mean for change in self.swapped.values()) / len(self.swapped)
        shown = f" ({', '.join(alike)})" if 0 < len(alike) <= PAIRS_SHOWN else ""
        exceptions = f"no visible cost for {len(alike)} of {len(self.swapped)} pairs{shown}"
        return [f"swapping two costs {mean_cost:+.4f} nats on average, {exceptions}"]

    def _of_all(self) -> list[str]:
        if (between := self.similarity.between) is None:  # of a single one
            return []
        chance = self.similarity.chance
        settled = "" if _costs(self.averaged) else ": no visible loss"
        return [
            f"averaging all into one changes the loss by {nats(self.averaged)}{settled}; without the whole layer it "
            f"changes by {nats(self.all_off)}",
            f"two outputs for one token have a cosine of {between:.2f}, for unrelated tokens {chance:.2f}",
        ]


@dataclass(frozen=True)
class Ablation:
    """All layers; `loss` is that of the unchanged model on the same windows."""

    loss: float
    layers: tuple[LayerAblation, ...]

    def findings(self) -> list[str]:
        return [f"Layer {number}: {'; '.join(layer.findings())}." for number, layer in enumerate(self.layers)]


def ablation(
    model: SwitchLM, probe: Probe, *, num_windows: int = WINDOWS, pairs: int = PAIRS, seed: int = 0, say: Say = silent
) -> Ablation:
    """Changes a copy, one layer at a time, and reads `num_windows` windows with nothing dropped.

    Of a layer with more than `pairs` pairs of experts, `pairs` are drawn.
    """
    switch_layers(model)
    copied, probe = deepcopy(model).eval(), probe.smaller(num_windows)
    replay = recorded(copied, probe)
    before_BS = replay.nll(0)
    found = []
    for number, similarity in enumerate(similarities(copied, probe)):
        experts = copied.switch_layers[number].experts

        def cost(change: Change, experts: Experts = experts, number: int = number) -> Estimate:
            say(f"ablation, layer {number}: {change.name}")
            with _weights(experts, change):
                return mean(replay.nll(number) - before_BS)

        drawn = _pairs(len(similarity.share_E), pairs, seed)
        found.append(
            LayerAblation(
                tuple(cost(_without(experts, e)) for e in range(len(similarity.share_E))),
                {pair: cost(_swapped(experts, *pair)) for pair in drawn},
                cost(_averaged(experts)),
                cost(_without(experts, *range(len(similarity.share_E)))),
                similarity,
            )
        )
    return Ablation(before_BS.double().mean().item(), tuple(found))


@dataclass(frozen=True)
class Change:
    """Other weights for the experts of a layer."""

    name: str
    w_in_EDF: Tensor
    w_out_EFD: Tensor


def _without(experts: Experts, *those: int) -> Change:
    w_out_EFD = experts.w_out_EFD.detach().clone()
    w_out_EFD[list(those)] = 0.0
    return Change(f"without expert {_list(list(those))}", experts.w_in_EDF.detach(), w_out_EFD)


def _swapped(experts: Experts, i: int, j: int) -> Change:
    order_E = [{i: j, j: i}.get(e, e) for e in range(len(experts.w_in_EDF))]
    return Change(f"{i} and {j} swapped", experts.w_in_EDF.detach()[order_E], experts.w_out_EFD.detach()[order_E])


def _averaged(experts: Experts) -> Change:
    """Every expert becomes the one whose output is the mean of all: it has the hidden units of all of them.

    The mean of their weights would depend on the order in which each happens to keep its hidden units.
    """
    num_experts = len(experts.w_in_EDF)
    w_in_DG = torch.cat(list(experts.w_in_EDF.detach()), dim=1)  # G = E x F
    w_out_GD = torch.cat(list(experts.w_out_EFD.detach())) / num_experts
    return Change("all averaged", w_in_DG.expand(num_experts, -1, -1), w_out_GD.expand(num_experts, -1, -1))


@contextmanager
def _weights(experts: Experts, change: Change) -> Iterator[None]:
    before = experts.w_in_EDF.data, experts.w_out_EFD.data
    experts.w_in_EDF.data, experts.w_out_EFD.data = change.w_in_EDF, change.w_out_EFD
    try:
        yield
    finally:
        experts.w_in_EDF.data, experts.w_out_EFD.data = before


def _pairs(num_experts: int, limit: int, seed: int) -> list[Pair]:
    every = list(combinations(range(num_experts), 2))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:limit]
    return sorted(every[i] for i in order.tolist()) if len(every) > limit else every


def _costs(change: Estimate) -> bool:
    return change.resolved and change.mean > 0.0


def _list(experts: list[int]) -> str:
    return ", ".join(map(str, experts))
