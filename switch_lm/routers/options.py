"""The options of a router, as plain data, and the capacity of an expert."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class RoutingRule:
    """The options of a router, by default those of Switch Transformers; configs/model/switch.yaml explains each."""

    top_k: int = 1
    renormalize_gates: bool = False  # Shazeer et al. 2017, GShard; for top_k >= 2
    gate_scale: str = "probability"  # or straight_through: p / p.detach(), the annotated implementation's
    selection: str = "argmax"  # or sample: from p, in training (Switch Transformers, app. C)
    drop_order: str = "position"  # or random (the annotated implementation), probability (V-MoE, section 4)
    queue_order: str = "token"  # or choice: all first choices before all second ones (GShard, algorithm 1)
    overflow: str = "drop"  # or reroute (Switch Transformers, app. B), passthrough (the annotated implementation)
    capacity_group: str = "batch"  # or sequence
    random_drop_rate: float = 0.0  # share of choices dropped at random in training, to isolate the effect of dropping


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float | None) -> int | None:
    """Capacity slots per expert: min(T, max(1, ceil(capacity_factor x T / E))); None (no limit) if the factor is None.

    The factor is taken as the decimal number it prints as: in floats, ceil(1.1 x 100 / 10) is 12. The paper specifies
    neither the rounding nor the minimum of 1. Source: Switch Transformers, eq. 3.
    """
    if capacity_factor is None:
        return None
    factor = Fraction(str(capacity_factor))
    slots = -(-factor.numerator * num_tokens // (factor.denominator * num_experts))
    return min(num_tokens, max(1, slots))
