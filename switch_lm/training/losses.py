"""The losses of one micro-batch."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.measure.metrics import RoutingSums
from switch_lm.model.losses import language_loss, summed
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.losses import importance_loss, router_z_loss
from switch_lm.routers.routing import Routing
from switch_lm.training.data import Batch
from switch_lm.training.parallel.group import ALONE, Group


class Losses(NamedTuple):
    """`total` to minimise and its parts, and what the Switch layers decided."""

    total: Tensor
    language: Tensor
    routers: dict[str, Tensor]  # the routers' own losses by name, balance among them
    router_z: Tensor | None  # None if its weight is 0
    importance: Tensor | None
    routings: tuple[Routing, ...]
    sums: tuple[RoutingSums, ...] = ()  # of all processes; empty where there is one

    def by_tag(self) -> dict[str, Tensor]:
        """Without gradients, as they are logged."""
        by_tag = {
            "train/loss": self.language,
            **{f"train/{name}_loss": loss for name, loss in self.routers.items()},
            "train/total_loss": self.total,
            "train/z_loss": self.router_z,
            "train/importance_loss": self.importance,
        }
        return {tag: loss.detach() for tag, loss in by_tag.items() if loss is not None}


def losses_of(
    model: SwitchLM, config: Config, ids: Tensor, targets: Tensor, *, group: Group = ALONE, of_step_LE: Tensor | None
) -> Losses:
    """Those of a micro-batch, ids and targets (B, S). `group`: the processes that have its other rows.

    The mean of their losses, and of their gradients, is that of one process with all rows: f is that of all rows, and
    P, the mean over those of a process, enters a loss linearly. `of_step_LE`: `loads_of_step`, if it is counted.
    """
    output = model(ids)
    language = language_loss(output.logits, targets)
    routings, sums = output.routings, group.sums_of(output.routings)
    balanced_over = group if config.balance_over in ("global", "step") else ALONE
    if of_step_LE is not None:
        routings = tuple(replace(one, balanced_E=load_E) for one, load_E in zip(routings, of_step_LE, strict=True))
    elif config.balance_over == "sequence":
        routings = tuple(replace(one, balanced_rows=len(ids)) for one in routings)
    elif sums and balanced_over is group:
        routings = tuple(replace(one, balanced_E=of.load_E) for one, of in zip(routings, sums, strict=True))
    of_routers = model.aux_losses(routings)
    router_z = summed(router_z_loss, routings) if config.z_loss > 0.0 else None
    importance = None
    if config.importance > 0.0:
        importance = summed(partial(importance_loss, over_all=balanced_over.sum_with_gradient), routings)
    total = language  # eq. 4
    for name, loss in of_routers.items():
        total = total + (config.balance_weight if name == "balance" else config.alpha) * loss
    if router_z is not None:
        total = total + config.z_loss * router_z
    if importance is not None:
        total = total + config.importance * importance
    return Losses(total, language, of_routers, router_z, importance, output.routings, sums)


def loads_of_step(model: SwitchLM, batches: Iterable[Batch], *, group: Group) -> Tensor:
    """How many choices of the step's micro-batches, of all processes, select each expert (L, E), int64.

    From a pass without gradients and with the noise of the one that trains, so that the choices are the same.
    """
    loads, device = [], next(model.parameters()).device
    for batch in batches:
        with torch.no_grad():
            routings = model(batch.ids.to(device)).routings
        loads.append(torch.stack([routing.load_E for routing in routings]))
    torch.clear_autocast_cache()  # it has weights without gradient
    return group.sum_of(torch.stack(loads).sum(dim=0))
