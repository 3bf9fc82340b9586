"""A control: a Switch router that never learns."""

from dataclasses import replace
from typing import Any

from switch_lm.routers.base import Promise
from switch_lm.routers.options import FrozenOptions
from switch_lm.routers.switch import SwitchRouter


class FrozenRouter(SwitchRouter):
    """As `switch`, with a W_r that stays as it was drawn."""

    name = "frozen"
    Options = FrozenOptions

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.get_parameter("w_DE").requires_grad_(False)

    def promise(self, *, training: bool, limited: bool) -> Promise:
        return replace(super().promise(training=training, limited=limited), learns=False)
