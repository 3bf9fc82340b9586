"""The losses of one micro-batch."""

from typing import NamedTuple

from torch import Tensor

from switch_lm.measure.metrics import RoutingSums
from switch_lm.routers.routing import Routing


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
