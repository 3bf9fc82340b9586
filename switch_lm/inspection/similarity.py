"""How alike the outputs of a layer's experts are, on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.probe import Probe, switch_layers
from switch_lm.probe.subject import calls

ROWS = 8  # windows in a pass: every expert gives an output for every token


@dataclass(frozen=True)
class Similarity:
    """How alike the outputs of one layer's experts are."""

    share_E: tuple[float, ...]  # of the choices
    same_EE: Tensor  # mean cosine, for the same token
    chance: float  # mean over pairs, one of the two on the token half a batch further on; 0 of a single expert

    @property
    def between(self) -> float | None:
        """Mean over pairs of different experts; None of a single one."""
        return _between(self.same_EE)


def similarities(model: SwitchLM, probe: Probe) -> list[Similarity]:
    """Every expert on every token that reaches its layer, whether the router sends it there or not."""
    num_layers, num_experts = len(switch_layers(model)), switch_layers(model)[0].num_experts
    same_LEE, apart_LEE = torch.zeros(2, num_layers, num_experts, num_experts, dtype=torch.float64)
    load_LE = torch.zeros(num_layers, num_experts, dtype=torch.float64)
    for ids_BS, _ in probe.batches(ROWS):
        with torch.inference_mode(), calls(model) as seen:
            model(ids_BS, capacity_factor=None)
            for number, call in enumerate(seen):
                x_TD = call.x_BSD.flatten(0, 1)
                y_ETD = F.normalize(call.layer.experts.padded(x_TD.expand(num_experts, *x_TD.shape)), dim=-1)
                apart_ETD = y_ETD.roll(x_TD.shape[0] // 2, dims=1)
                for total_LEE, other_ETD in ((same_LEE, y_ETD), (apart_LEE, apart_ETD)):
                    cosine_EE = (y_ETD.flatten(1) @ other_ETD.flatten(1).T) / probe.ids_BS.numel()
                    total_LEE[number] += cosine_EE.cpu()
                load_LE[number] += call.routing.load_E.cpu()
    share_LE = load_LE / load_LE.sum(dim=1, keepdim=True)
    return [
        Similarity(tuple(share_E.tolist()), same_EE, _between(apart_EE) or 0.0)
        for share_E, same_EE, apart_EE in zip(share_LE, same_LEE, apart_LEE, strict=True)
    ]


def _between(cosine_EE: Tensor) -> float | None:
    cosines = cosine_EE[torch.ones_like(cosine_EE, dtype=torch.bool).triu(1)]
    return cosines.mean().item() if cosines.numel() else None
