"""When a router counts as dead or collapsed, and the message about it. Pure, without a logger."""

from collections.abc import Sequence
from typing import Any

from switch_lm.config.schema import HealthConfig
from switch_lm.measure.router_health import RouterHealth

DEAD, COLLAPSED = "dead", "collapsed"


class RouterAlarmError(Exception):
    """A router is dead or has collapsed, and `router_alarm=error` ends the training."""


class RouterAlarm:
    """Reports a router once, after `config.checks` checks in a row found it dead or collapsed.

    A dead router gets no gradient from the language loss. A collapsed one sends too many tokens to one expert, or none
    to too many experts.
    """

    def __init__(self, config: HealthConfig, *, alpha: float | None, blocks: Sequence[int]) -> None:
        self.config, self.alpha, self.blocks = config, alpha, blocks
        self._in_a_row: dict[str, int] = {}  # bad checks by kind and layer
        self._reported: list[str] = []  # kinds and layers
        self.messages: list[str] = []  # all so far

    def check(self, layers: Sequence[RouterHealth], *, step: int) -> list[str]:
        """The new messages after a check of all Switch layers."""
        messages = []
        for kind, message in ((DEAD, self._dead), (COLLAPSED, self._collapsed)):
            new = []
            for layer, health in enumerate(layers):
                bad = not health.learns if kind == DEAD else self._has_collapsed(health)
                key = f"{kind} {layer}"
                self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if bad else 0
                if self._in_a_row[key] >= self.config.checks and key not in self._reported:
                    self._reported.append(key)
                    new.append(layer)
            if new:
                messages.append(message(new, layers[new[0]], step))
        self.messages += messages
        return messages

    @property
    def standing(self) -> bool:
        """Whether a router was dead or collapsed for long enough at the last check, reported before or not."""
        return any(count >= self.config.checks for count in self._in_a_row.values())

    def _has_collapsed(self, health: RouterHealth) -> bool:
        """A limit below the even share, which any router exceeds, becomes the middle of that share and 1."""
        even, limit = health.even_share, self.config.max_share
        limit = limit if limit > even else (1.0 + even) / 2.0
        return health.max_share > limit or (health.num_experts > 1 and health.idle_share > limit)

    def _dead(self, layers: list[int], first: RouterHealth, step: int) -> str:
        return (
            f"step {step}: the router of {self._named(layers)} is dead: it gets no gradient from the language loss "
            f"(norm {first.language_gradient:.1e} {self._when()}), so it learns nothing from the text. A gate must "
            "depend on the probability among all experts (router.gate_scale=probability); if the logits have "
            f"diverged (entropy {first.entropy:.2f}), z_loss=0.001 or a lower optim.lr helps"
        )

    def _collapsed(self, layers: list[int], first: RouterHealth, step: int) -> str:
        advice = (
            f"{self._balance()} At the start of training, a larger router.jitter and a longer optim.warmup_steps help"
        )
        if not first.can_learn:
            advice = "It is not trained: its rule alone decides that"
        return (
            f"step {step}: the router of {self._named(layers)} has collapsed: expert {first.busiest} gets "
            f"{first.max_share:.0%} of the characters, and {first.idle_share:.0%} of the experts get none "
            f"{self._when()} (health.max_share={self.config.max_share:g}). {advice}"
        )

    def _balance(self) -> str:
        """What would even the load."""
        if self.alpha is None:
            return "Balance it by balance=loss, or with balance=sign by a larger balance.rate."
        return f"Raise alpha (now {self.alpha:g}), or balance by a bias: balance=sign."

    def _named(self, layers: list[int]) -> str:
        """Switch layers by the numbers of their blocks."""
        numbers = ", ".join(f"{self.blocks[layer]:02d}" for layer in layers)
        return f"layer {numbers}" if len(layers) == 1 else f"layers {numbers}"

    def _when(self) -> str:
        checks, every = self.config.checks, self.config.every
        return "at the last check" if checks == 1 else f"in {checks} checks in a row, {every} steps apart"

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row), "reported": list(self._reported), "messages": list(self.messages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self._reported = dict(state["in_a_row"]), list(state["reported"])
        self.messages = list(state["messages"])
