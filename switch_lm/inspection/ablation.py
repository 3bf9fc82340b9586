"""Are the experts different? What the loss becomes when they are changed, and how alike their outputs are."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.model.experts import Experts
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, recorded, switch_layers
from switch_lm.probe.subject import calls
from switch_lm.stats.clusters import mean, nats
from switch_lm.stats.intervals import Estimate

WINDOWS = 32
ROWS = 8  # windows in a pass for the similarity: every expert gives an output for every token
PAIRS = 28  # per layer: all pairs of eight experts
PAIRS_SHOWN = 6
Pair = tuple[int, int]
Weights = tuple[Tensor, Tensor]  # w_in_EDF and w_out_EFD of the experts of a layer


@dataclass(frozen=True)
class Similarity:
    """How alike the outputs of one layer's experts are."""

    share_E: tuple[float, ...]  # of the choices
    same_EE: Tensor  # mean cosine of two outputs for the same token
    between: float | None  # mean of those over pairs of different experts; None for a single expert
    chance: float  # the same with one of the two tokens half a batch further on; 0 for a single expert


@dataclass(frozen=True)
class LayerAblation:
    """What each change of one layer's experts adds to the loss, in nats per character; the router stays as it is."""

    off: tuple[Estimate, ...]  # the expert gives 0
    swapped: dict[Pair, Estimate]  # the two exchange their weights
    averaged: Estimate  # all give the mean of their outputs, times the gate: one dense feed-forward
    all_off: Estimate  # the whole layer gives 0: what there is to lose
    similarity: Similarity

    def findings(self) -> list[str]:
        """What each expert is worth, which pairs are interchangeable, what it is worth that they differ."""
        share_E = self.similarity.share_E
        idle = [e for e, share in enumerate(share_E) if share == 0.0]
        needless = [e for e, change in enumerate(self.off) if not _costs(change) and e not in idle]
        worst = max(range(len(self.off)), key=lambda e: self.off[e].mean)
        if _costs(self.off[worst]):
            result = [f"switching off expert {worst} costs most, {nats(self.off[worst])}; it has {share_E[worst]:.0%}"]
            result += [f"without a token of the probe: expert {_list(idle)}"] if idle else []
            result += [f"switching off expert {_list(needless)} has no visible cost"] if needless else []
        else:
            result = ["switching off any one expert has no visible cost"]
        if self.swapped:
            alike = [f"{i} and {j}" for (i, j), change in self.swapped.items() if not _costs(change)]
            mean_cost = sum(change.mean for change in self.swapped.values()) / len(self.swapped)
            named = f" ({', '.join(alike)})" if 0 < len(alike) <= PAIRS_SHOWN else ""
            exceptions = f"no visible cost for {len(alike)} of {len(self.swapped)} pairs{named}"
            result.append(f"swapping two costs {mean_cost:+.4f} nats on average, {exceptions}")
        if (between := self.similarity.between) is not None:
            settled = "" if _costs(self.averaged) else ": no visible loss"
            result += [
                f"averaging all into one changes the loss by {nats(self.averaged)}{settled}; without the whole layer "
                f"it changes by {nats(self.all_off)}",
                f"two outputs for one token have a cosine of {between:.2f}, for unrelated tokens "
                f"{self.similarity.chance:.2f}",
            ]
        return result


@dataclass(frozen=True)
class Ablation:
    """All layers; `loss` is that of the unchanged model on the same windows."""

    loss: float
    layers: tuple[LayerAblation, ...]

    def findings(self, blocks: Sequence[int]) -> list[str]:
        """One sentence per layer, named by its block."""
        return [f"Layer {n}: {'; '.join(layer.findings())}." for n, layer in zip(blocks, self.layers, strict=True)]


def ablation(
    model: SwitchLM, probe: Probe, *, num_windows: int = WINDOWS, pairs: int = PAIRS, seed: int = 0, say: Say = silent
) -> Ablation:
    """Changes a copy, one layer at a time, and reads `num_windows` windows with nothing dropped.

    If a layer has more than `pairs` pairs of experts, `pairs` of them are drawn.
    """
    copied, probe = deepcopy(model).eval(), probe.smaller(num_windows)
    layers, nll_from = switch_layers(copied), recorded(copied, probe)
    before_BS = nll_from(0)

    def cost(number: int, name: str, weights: Weights) -> Estimate:
        say(f"ablation, layer {model.config.switch_blocks[number]}: {name}")
        experts = layers[number].experts
        before = experts.w_in_EDF.data, experts.w_out_EFD.data
        experts.w_in_EDF.data, experts.w_out_EFD.data = weights
        after_BS = nll_from(number)
        experts.w_in_EDF.data, experts.w_out_EFD.data = before
        return mean(after_BS - before_BS)

    result = []
    for number, similarity in enumerate(similarities(copied, probe)):
        experts, every = layers[number].experts, range(layers[number].num_experts)
        off = tuple(cost(number, f"without expert {e}", _without(experts, [e])) for e in every)
        drawn = _pairs(len(every), pairs, seed)
        swapped = {(i, j): cost(number, f"{i} and {j} swapped", _swapped(experts, i, j)) for i, j in drawn}
        averaged = cost(number, "all averaged", _averaged(experts))
        all_off = cost(number, "without any expert", _without(experts, list(every)))
        result.append(LayerAblation(off, swapped, averaged, all_off, similarity))
    return Ablation(before_BS.double().mean().item(), tuple(result))


def _without(experts: Experts, numbers: list[int]) -> Weights:
    w_out_EFD = experts.w_out_EFD.detach().clone()
    w_out_EFD[numbers] = 0.0
    return experts.w_in_EDF.detach(), w_out_EFD


def _swapped(experts: Experts, i: int, j: int) -> Weights:
    order_E = [{i: j, j: i}.get(e, e) for e in range(len(experts.w_in_EDF))]
    return experts.w_in_EDF.detach()[order_E], experts.w_out_EFD.detach()[order_E]


def _averaged(experts: Experts) -> Weights:
    """Every expert becomes the one whose output is the mean of all: it has the hidden units of all of them.

    The mean of their weights would depend on the order in which each happens to keep its hidden units.
    """
    num_experts = len(experts.w_in_EDF)
    w_in_DG = torch.cat(list(experts.w_in_EDF.detach()), dim=1)  # G = E x F
    w_out_GD = torch.cat(list(experts.w_out_EFD.detach())) / num_experts
    return w_in_DG.expand(num_experts, -1, -1), w_out_GD.expand(num_experts, -1, -1)


def _pairs(num_experts: int, limit: int, seed: int) -> list[Pair]:
    every = list(combinations(range(num_experts), 2))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:limit]
    return sorted(every[i] for i in order.tolist())


def _costs(change: Estimate) -> bool:
    return change.resolved and change.mean > 0.0


def _list(experts: list[int]) -> str:
    return ", ".join(map(str, experts))


def similarities(model: SwitchLM, probe: Probe) -> list[Similarity]:
    """Every expert on every token that reaches its layer, whether the router sends it there or not."""
    num_layers, num_experts = len(switch_layers(model)), switch_layers(model)[0].num_experts
    same_LEE, apart_LEE = torch.zeros(2, num_layers, num_experts, num_experts, dtype=torch.float64)
    load_LE = torch.zeros(num_layers, num_experts, dtype=torch.float64)
    for ids_BS, _ in probe.batches(ROWS):
        with torch.inference_mode(), calls(model) as seen:
            model(ids_BS, capacity_factor=None)
            for number, call in enumerate(seen):
                y_ETD = F.normalize(call.every_output_ETD(), dim=-1)
                apart_ETD = y_ETD.roll(y_ETD.shape[1] // 2, dims=1)
                for total_LEE, other_ETD in ((same_LEE, y_ETD), (apart_LEE, apart_ETD)):
                    cosine_EE = (y_ETD.flatten(1) @ other_ETD.flatten(1).T) / probe.ids_BS.numel()
                    total_LEE[number] += cosine_EE.cpu()
                load_LE[number] += call.routing.load_E.cpu()
    share_LE = load_LE / load_LE.sum(dim=1, keepdim=True).clamp(min=1)
    return [
        Similarity(tuple(share_E.tolist()), same_EE, _between(same_EE), _between(apart_EE) or 0.0)
        for share_E, same_EE, apart_EE in zip(share_LE, same_LEE, apart_LEE, strict=True)
    ]


def _between(cosine_EE: Tensor) -> float | None:
    cosines = cosine_EE[torch.ones_like(cosine_EE, dtype=torch.bool).triu(1)]
    return cosines.mean().item() if cosines.numel() else None
