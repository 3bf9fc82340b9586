"""When a router counts as dead or collapsed, and the message for it. Pure, without a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from switch_lm.config.schema import HealthConfig
from switch_lm.measure.router_health import RouterHealth

DEAD, COLLAPSED = "dead", "collapsed"


class RouterAlarmError(Exception):
    """A router is dead or has collapsed, and `router_alarm=error` ends training then."""


class RouterAlarm:
    """Counts for each layer the looks in a row that found its router dead or collapsed, and reports each once."""

    def __init__(self, config: HealthConfig, *, alpha: float) -> None:
        self.config, self.alpha = config, alpha
        self._in_a_row: dict[str, int] = {}  # by kind and layer
        self._reported: list[str] = []  # kinds and layers
        self.messages: list[str] = []  # all so far

    def look(self, found: Sequence[RouterHealth], *, step: int) -> list[str]:
        """The messages after this look."""
        messages = []
        for kind, in_words in ((DEAD, self._dead), (COLLAPSED, self._collapsed)):
            standing = [layer for layer, health in enumerate(found) if self._counts(kind, layer, health)]
            if new := [layer for layer in standing if f"{kind} {layer}" not in self._reported]:
                self._reported += [f"{kind} {layer}" for layer in new]
                messages.append(in_words(new, found[new[0]], step))
        self.messages += messages
        return messages

    @property
    def standing(self) -> bool:
        """Whether a router was dead or collapsed for long enough at the last look, reported before or not."""
        return any(count >= self.config.checks for count in self._in_a_row.values())

    def _counts(self, kind: str, layer: int, health: RouterHealth) -> bool:
        """Whether enough looks in a row have found this."""
        bad = not health.learns if kind == DEAD else self._has_collapsed(health)
        key = f"{kind} {layer}"
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if bad else 0
        return self._in_a_row[key] >= self.config.checks

    def _has_collapsed(self, health: RouterHealth) -> bool:
        """A limit below the even share would be met by any router: halfway to all stands in for it."""
        even, limit = health.even_share, self.config.max_share
        limit = limit if limit > even else (1.0 + even) / 2.0
        return health.max_share > limit or (health.num_experts > 1 and health.idle_share > limit)

    def _dead(self, layers: list[int], first: RouterHealth, step: int) -> str:
        return (
            f"step {step}: the router of {_named(layers)} is dead: the language loss has no gradient on it (norm "
            f"{first.language_gradient:.1e} {self._looks()}), so experts are chosen without regard to the text. "
            "What multiplies an expert's output must follow its probability among all (model.gate_scale=probability); "
            f"if the logits have run away (entropy {first.entropy:.2f}), z_loss=0.001 or a lower optim.lr helps"
        )

    def _collapsed(self, layers: list[int], first: RouterHealth, step: int) -> str:
        return (
            f"step {step}: the router of {_named(layers)} has collapsed: expert {first.busiest} gets "
            f"{first.max_share:.0%} of the characters, and {first.idle_share:.0%} of the experts get none "
            f"{self._looks()} (health.max_share={self.config.max_share:g}). Raise alpha (now {self.alpha:g}), or "
            "balance by a bias: model.selection_bias_rate=0.001; a larger model.router_jitter and a longer "
            "optim.warmup_steps help at the start"
        )

    def _looks(self) -> str:
        checks, every = self.config.checks, self.config.every
        return "at the last look" if checks == 1 else f"in {checks} looks, {every} steps apart"

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row), "told": list(self._reported), "messages": list(self.messages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self._reported = dict(state["in_a_row"]), list(state["told"])
        self.messages = list(state["messages"])


def _named(layers: list[int]) -> str:
    numbers = ", ".join(f"{layer:02d}" for layer in layers)
    return f"layer {numbers}" if len(layers) == 1 else f"layers {numbers}"
