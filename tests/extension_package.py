"""A plugin as a user writes it, outside this package: a router in one file, and its YAML."""

from __future__ import annotations

from pathlib import Path

NAME = "extension"
ROUTER = '''
"""Each token goes to the expert whose probability is the second largest, or the one that `rank` says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from switch_lm.config.keys import at_least, key
from switch_lm.routers.base import Router
from switch_lm.routers.options import RouterOptions
from switch_lm.routers.oracles import Expected, queued
from switch_lm.routers.routing import Routing


@dataclass
class Options(RouterOptions):
    name: str = key("second_best", "Which router it is.")
    rank: int = key(2, "1: the largest probability, 2: the second.", at_least(1))


def oracle(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    probs_TE = (x_TD.float() @ weights["w_DE"]).softmax(dim=-1)
    selected = [[sorted(range(len(p)), key=lambda e: -p[e])[options.rank - 1]] for p in probs_TE.tolist()]
    return queued(selected, probs_TE, probs_TE.detach(), options, capacity, num_groups, training=training)


class SecondBest(Router):
    name = "second_best"
    Options = Options
    options: Options
    oracle = staticmethod(oracle)

    def assign(
        self,
        x_TD: Tensor,
        logits_TE: Tensor,
        *,
        ids_T: Tensor | None,
        position_T: Tensor | None,
        capacity: int | None,
        num_groups: int,
    ) -> Routing:
        probs_TE = logits_TE.softmax(dim=-1)
        expert_TK = probs_TE.topk(self.options.rank, dim=-1).indices[:, -1:]
        return self.token_choice(expert_TK, probs_TE, logits_TE=logits_TE, capacity=capacity, num_groups=num_groups)
'''
YAML = """\
# Each token goes to the expert whose probability is the second largest.
defaults:
  - base

name: second_best
# 1: the largest probability, 2: the second.
rank: 2
"""


def write(folder: Path) -> str:
    """Writes the package into a folder; what SWITCH_LM_PLUGINS must hold to have it."""
    package = folder / NAME
    (package / "configs" / "router").mkdir(parents=True)
    (package / "__init__.py").write_text(f"from {NAME} import router\n")
    (package / "router.py").write_text(ROUTER)
    (package / "configs" / "router" / "second_best.yaml").write_text(YAML)
    return NAME
