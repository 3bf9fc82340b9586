"""A router outside of the package, with which tests show that whatever looks into a routing takes any router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from switch_lm.config.keys import key
from switch_lm.routers.expert_choice import ExpertChoiceRouter
from switch_lm.routers.options import NAME_OF_ROUTER, ExpertChoiceOptions


@dataclass
class ChosenOptions(ExpertChoiceOptions):
    """Those of expert choice, which may train without a capacity, too."""

    name: str = key("test_expert_choice", NAME_OF_ROUTER)

    def problems(self, *others: Any) -> Iterator[Any]:
        yield from ()


class ExpertChoice(ExpertChoiceRouter):
    """As if trained: a token has from none to all experts."""

    name = "test_expert_choice"
    Options = ChosenOptions

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.cutoff_E.copy_(torch.tensor([0.15, 0.3, 0.45, 0.45]))
