"""When a router counts as dead or collapsed, and what is said then. Pure, without a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from switch_lm.router_health import RouterHealth
from switch_lm.settings import HealthConfig

DEAD, COLLAPSED = "dead", "collapsed"


class RouterAlarmError(Exception):
    """A router is dead or has collapsed, and `router_alarm=error` ends training then."""


class RouterAlarm:
    """Counts, layer by layer, the looks in a row that found a router dead or collapsed, and tells of each once."""

    def __init__(self, config: HealthConfig, *, alpha: float) -> None:
        self.config, self.alpha = config, alpha
        self._in_a_row: dict[str, int] = {}  # by kind and layer
        self.told: dict[str, str] = {}  # what was said, by kind

    def look(self, found: Sequence[RouterHealth], *, step: int) -> list[str]:
        """What is to be said after this look."""
        messages = []
        for kind, in_words in ((DEAD, self._dead), (COLLAPSED, self._collapsed)):
            layers = [layer for layer, health in enumerate(found) if self._counts(kind, layer, health)]
            if layers and kind not in self.told:
                self.told[kind] = in_words(layers, found[layers[0]], step)
                messages.append(self.told[kind])
        return messages

    def _counts(self, kind: str, layer: int, health: RouterHealth) -> bool:
        """Whether this is the last of the looks in a row that it takes."""
        limit = self.config.max_share
        bad = not health.learns if kind == DEAD else health.max_share > limit > health.even_share
        key = f"{kind} {layer}"
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if bad else 0
        return self._in_a_row[key] >= self.config.checks

    def _dead(self, layers: list[int], first: RouterHealth, step: int) -> str:
        return (
            f"step {step}: the router of {_named(layers)} is dead: the language loss has no gradient on it (norm "
            f"{first.language_gradient:.1e} in {self._looks()}), so experts are chosen without regard to the text. Use "
            "a gate that follows the probability (model.gate_scale=probability, model.renormalize_gates=false); if its "
            f"logits have run away (entropy {first.entropy:.2f}), z_loss=0.001 or a lower optim.lr"
        )

    def _collapsed(self, layers: list[int], first: RouterHealth, step: int) -> str:
        return (
            f"step {step}: the router of {_named(layers)} has collapsed: expert {first.busiest} gets "
            f"{first.max_share:.0%} of the characters in {self._looks()} (health.max_share={self.config.max_share:g}). "
            f"Raise alpha (now {self.alpha:g}), or balance by a bias: model.selection_bias_rate=0.001; a larger "
            "model.router_jitter and a longer optim.warmup_steps help at the start"
        )

    def _looks(self) -> str:
        return f"{self.config.checks} looks, {self.config.every} steps apart"

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row), "told": dict(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row, self.told = dict(state["in_a_row"]), dict(state["told"])


def _named(layers: list[int]) -> str:
    numbers = ", ".join(f"{layer:02d}" for layer in layers)
    return f"layer {numbers}" if len(layers) == 1 else f"layers {numbers}"
