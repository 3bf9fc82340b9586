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
from switch_lm.pages.coloured_text import MOST_EXPERTS, busiest
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import ROWS as READ_ROWS
from switch_lm.probe.reading import Probe, recorded, switch_layers
from switch_lm.probe.subject import calls
from switch_lm.stats.clusters import mean
from switch_lm.stats.intervals import Estimate

WINDOWS = 32
ROWS = 8  # windows in a pass for the similarity: every expert gives an output for every token
PAIRS = 28  # per layer: all pairs of eight experts
Pair = tuple[int, int]
Weights = tuple[Tensor, Tensor]  # w_in_EDF and w_out_EFD of the experts of a layer


@dataclass(frozen=True)
class Similarity:
    """How alike the outputs of one layer's experts are."""

    share_E: tuple[float, ...]  # of the tokens, for every expert
    experts: tuple[int, ...]  # those of `same_EE`: all, or of many the busiest
    same_EE: Tensor  # mean cosine of two outputs for the same token
    between: float | None  # mean of those over pairs of different experts; None for a single expert
    chance: float  # the same with one of the two tokens half a batch further on; 0 for a single expert


@dataclass(frozen=True)
class Costliest:
    """The expert that costs most without it on every other window, and what it costs on the windows between these.

    Were it chosen and estimated on the same windows, it would seem to cost more than it does.
    """

    expert: int
    cost: Estimate


@dataclass(frozen=True)
class LayerAblation:
    """What each change of one layer's experts adds to the loss, in nats per character; the router stays as it is."""

    off: tuple[Estimate, ...]  # the expert gives 0; each of `similarity.experts`
    costliest: Costliest | None  # None: of one window, none is left to estimate it on
    swapped: dict[Pair, Estimate]  # the two exchange their weights
    any_swapped: Estimate | None  # the mean over these pairs; None for a single expert
    averaged: Estimate  # all give the mean of their outputs, times the gate: one dense feed-forward
    all_off: Estimate  # the whole layer gives 0: what there is to lose
    similarity: Similarity

    @property
    def comparisons(self) -> int:
        """How many intervals there are."""
        return len(self.off) + len(self.swapped) + (self.any_swapped is not None) + (self.costliest is not None) + 2


@dataclass(frozen=True)
class Ablation:
    """All layers; `loss` is that of the unchanged model on the same windows."""

    loss: float
    layers: tuple[LayerAblation, ...]

    @property
    def comparisons(self) -> int:
        """How many intervals there are, of all layers: each is corrected for all."""
        return sum(layer.comparisons for layer in self.layers)


def ablation(
    model: SwitchLM, probe: Probe, *, num_windows: int = WINDOWS, pairs: int = PAIRS, seed: int = 0, say: Say = silent
) -> Ablation:
    """Changes a copy, one layer at a time, and reads `num_windows` windows with nothing dropped.

    Of more than 64 experts in a layer only the busiest are switched off or swapped. If there are more than `pairs`
    pairs of these, `pairs` of them are drawn.
    """
    copied, probe = deepcopy(model).eval(), probe.smaller(num_windows)
    layers = switch_layers(copied)
    rows = max(1, READ_ROWS * MOST_EXPERTS // max(MOST_EXPERTS, layers[0].num_experts))
    nll_from = recorded(copied, probe, rows=rows)  # the average of all has the hidden units of all for each token
    before_BS = nll_from(0)

    def change_B1(number: int, name: str, weights: Weights) -> Tensor:
        say(f"ablation, layer {model.config.switch_blocks[number]}: {name}")
        experts = layers[number].experts
        before = experts.w_in_EDF.data, experts.w_out_EFD.data
        experts.w_in_EDF.data, experts.w_out_EFD.data = weights
        after_BS = nll_from(number)
        experts.w_in_EDF.data, experts.w_out_EFD.data = before
        return (after_BS - before_BS).double().mean(dim=1, keepdim=True)

    result = []
    for number, similarity in enumerate(similarities(copied, probe)):
        experts, every = layers[number].experts, range(layers[number].num_experts)
        off = [change_B1(number, f"without expert {e}", _without(experts, [e])) for e in similarity.experts]
        drawn = _pairs(similarity.experts, pairs, seed)
        swapped = {(i, j): change_B1(number, f"{i} and {j} swapped", _swapped(experts, i, j)) for i, j in drawn}
        averaged = change_B1(number, "all averaged", _averaged(experts))
        all_off = change_B1(number, "without any expert", _without(experts, list(every)))
        result.append(
            LayerAblation(
                off=tuple(map(mean, off)),
                costliest=costliest(torch.cat(off, dim=1), experts=similarity.experts),
                swapped={pair: mean(changed_B1) for pair, changed_B1 in swapped.items()},
                any_swapped=mean(torch.cat(list(swapped.values()), dim=1)) if swapped else None,
                averaged=mean(averaged),
                all_off=mean(all_off),
                similarity=similarity,
            )
        )
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


def _pairs(experts: Sequence[int], limit: int, seed: int) -> list[Pair]:
    every = list(combinations(sorted(experts), 2))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:limit]
    return sorted(every[i] for i in order.tolist())


def costliest(change_BE: Tensor, *, experts: Sequence[int] | None = None) -> Costliest | None:
    """Chosen on every other of B windows, from what each expert's absence adds to the loss of each window.

    `experts`: their numbers, by default from 0.

    None for one window: it cannot both choose and estimate.
    """
    if len(change_BE) < 2:
        return None
    column = int(change_BE[::2].mean(dim=0).argmax())
    return Costliest(column if experts is None else experts[column], mean(change_BE[1::2, [column]]))


def costs(change: Estimate, comparisons: int) -> bool:
    """Whether a change makes the loss larger, corrected for so many comparisons."""
    return change.mean > 0.0 and change.resolved(comparisons)


def similarities(model: SwitchLM, probe: Probe) -> list[Similarity]:
    """Every expert, of more than 64 the busiest, on every token that reaches its layer, whoever gets the token."""
    num_layers, num_experts = len(switch_layers(model)), switch_layers(model)[0].num_experts
    load_LE = torch.zeros(num_layers, num_experts, dtype=torch.float64)
    with torch.inference_mode():
        for ids_BS, _ in probe.batches(ROWS):
            load_LE += torch.stack([r.load_E for r in model(ids_BS, capacity_factor=None).routings]).cpu()
    experts_L = [tuple(busiest(load_E)) for load_E in load_LE.tolist()]
    shown = len(experts_L[0])
    same_LEE, apart_LEE = torch.zeros(2, num_layers, shown, shown, dtype=torch.float64)
    for ids_BS, _ in probe.batches(ROWS):
        with torch.inference_mode(), calls(model) as seen:
            model(ids_BS, capacity_factor=None)
            for number, call in enumerate(seen):
                y_ETD = F.normalize(call.every_output_ETD(experts_L[number]), dim=-1)
                apart_ETD = y_ETD.roll(y_ETD.shape[1] // 2, dims=1)
                for total_LEE, other_ETD in ((same_LEE, y_ETD), (apart_LEE, apart_ETD)):
                    cosine_EE = (y_ETD.flatten(1) @ other_ETD.flatten(1).T) / probe.ids_BS.numel()
                    total_LEE[number] += cosine_EE.cpu()
    share_LE = load_LE / probe.ids_BS.numel()
    return [
        Similarity(tuple(share_E.tolist()), experts, same_EE, _between(same_EE), _between(apart_EE) or 0.0)
        for share_E, experts, same_EE, apart_EE in zip(share_LE, experts_L, same_LEE, apart_LEE, strict=True)
    ]


def _between(cosine_EE: Tensor) -> float | None:
    cosines = cosine_EE[torch.ones_like(cosine_EE, dtype=torch.bool).triu(1)]
    return cosines.mean().item() if cosines.numel() else None
