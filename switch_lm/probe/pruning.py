"""Which experts can a model lose? Its loss with fewer of them, chosen by what they do or at random."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.reading import Probe, switch_layers
from switch_lm.probe.subject import calls, promised, used
from switch_lm.routers.base import Router
from switch_lm.routers.routing import Routing
from switch_lm.stats.clusters import mean
from switch_lm.stats.intervals import Estimate

RULES = BY_LOAD, BY_OUTPUT, AT_RANDOM = "by load", "by gate x output norm", "at random"
DRAWS = 5  # orders at random
ROWS = 16  # windows in a pass


class UnprunableError(ValueError):
    """A model whose experts cannot be removed."""


@dataclass(frozen=True)
class Pruned:
    """A model with `kept` of its experts in each Switch layer."""

    rule: str
    kept: int
    cost: Estimate  # nats per character above the whole model, by window; at random the mean of the draws
    draws: tuple[float, ...]  # the mean of each
    loss: float  # of the whole model on the same windows


def unprunable(model: SwitchLM) -> str | None:
    """Why no expert of a model can be removed; None if some can."""
    number, num_experts = promised(model, training=False, limited=False).experts_per_token, model.config.num_experts
    if number is None or not all(router.has_weights for router in model.routers):
        return "its tokens have no next choice of an expert: give a model whose tokens choose experts by scores"
    return f"{num_experts=} are all that a token chooses: give a model with more" if number >= num_experts else None


def pruning(model: SwitchLM, probe: Probe, *, say: Say = silent) -> list[Pruned]:
    """Removes as many experts from each Switch layer, those with the lowest value first, and drops nothing.

    The logits of a removed expert become minus infinity: a token goes to its next choice, with the gate that a router
    of only the others gives. Values are those of every other window, losses those of the windows between:
    empty with fewer than four. A model that is not `unprunable`; UnprunableError for a router that
    does not choose by its logits.
    """
    if len(probe.ids_BS) < 4:
        return []
    copied, num_experts = deepcopy(model).eval(), model.config.num_experts
    load_LE, output_LE = contributions(copied, probe.ids_BS[::2])
    removed_LE = torch.zeros_like(load_LE, dtype=torch.bool)
    for router, removed_E in zip(copied.routers, removed_LE, strict=True):
        _without(router, removed_E)

    @torch.inference_mode()
    def nll_B() -> Tensor:
        nll, split = [], (x_BS[1::2].split(ROWS) for x_BS in (probe.ids_BS, probe.target_BS))
        for ids_BS, target_BS in zip(*split, strict=True):
            output = copied(ids_BS, capacity_factor=None)
            if any(routing.load_E[out_E].any() for routing, out_E in zip(output.routings, removed_LE, strict=True)):
                raise UnprunableError(f"router={model.router_options.name} does not choose experts by its logits")
            nll.append(negative_log_likelihood(output.logits, target_BS).double().mean(dim=1))
        return torch.cat(nll)

    before_B, draw = nll_B(), torch.Generator().manual_seed(0)
    drawn = [torch.rand(load_LE.shape, generator=draw) for _ in range(DRAWS)]
    least, step = promised(model, training=False, limited=False).experts_per_token or 1, max(1, num_experts // 8)
    result = []
    for rule, values in zip(RULES, ([load_LE], [output_LE], drawn), strict=True):
        for kept in range(num_experts - step, least - 1, -step):
            say(f"pruning {rule}, {kept} of {num_experts} experts")
            changes = []
            for value_LE in values:
                lowest = value_LE.argsort(stable=True)[:, : num_experts - kept].to(removed_LE.device)
                removed_LE.zero_().scatter_(1, lowest, True)
                changes.append(nll_B() - before_B)
            draws = tuple(change_B.mean().item() for change_B in changes)
            result.append(Pruned(rule, kept, mean(torch.stack(changes, dim=1)), draws, before_B.mean().item()))
    return result


def _without(router: Router, removed_E: Tensor) -> None:
    """Makes a router pass over the experts that are marked at the time of a call."""
    assign, biased = router.assign, router.biased

    def assign_to_others(x_TD: Tensor, logits_TE: Tensor, **where: Any) -> Routing:
        return assign(x_TD, logits_TE.masked_fill(removed_E, -torch.inf), **where)

    router.assign = assign_to_others  # type: ignore[method-assign]
    router.biased = lambda score_TE: biased(score_TE).masked_fill(removed_E, -torch.inf)  # type: ignore[method-assign]


@torch.inference_mode()
def contributions(model: SwitchLM, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Each expert's load, and the mean of gate x norm of its output over its assignments, 0 without any (L, E).

    Source: Lasby et al. 2025 (REAP, arXiv 2510.13999), the score of an expert.
    """
    load_LE, output_LE = torch.zeros(2, len(switch_layers(model)), model.config.num_experts, device=ids_BS.device)
    for rows_BS in ids_BS.split(ROWS):
        with calls(model) as seen:
            model(rows_BS, capacity_factor=None)
        for call, load_E, output_E in zip(seen, load_LE, output_LE, strict=True):
            for expert in range(call.layer.num_experts):
                its_N = used(call.routing) & (call.routing.expert_N == expert)
                of_expert = replace(call, x_BSD=call.x_BSD.flatten(0, 1)[call.routing.token_N[its_N]][None])
                norm_N = of_expert.every_output_ETD([expert])[0].norm(dim=-1)
                load_E[expert] += len(norm_N)
                output_E[expert] += call.routing.gate_N[its_N] @ norm_N
    return load_LE, output_LE / load_LE.clamp(min=1)
