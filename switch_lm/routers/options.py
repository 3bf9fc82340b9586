"""The options of a router, as plain data, and the capacity of an expert."""

from dataclasses import dataclass
from fractions import Fraction

from switch_lm.config.keys import BELOW_ONE, at_least, key, one_of


@dataclass(frozen=True)
class RoutingRule:
    """The options of a router, by default those of Switch Transformers."""

    top_k: int = key(
        1,
        "Experts per token: 1 (Switch), 2 (the earlier mixture-of-experts layer) or more. A capacity holds choices.",
        at_least(1),
    )
    renormalize_gates: bool = key(
        False,
        "For top_k >= 2: divide a token's gates by their sum (Shazeer et al. 2017, GShard). Dropped choices count in "
        "the sum.",
    )
    gate_scale: str = key(
        "probability",
        "What an expert's output is multiplied by: probability (paper, eq. 2), straight_through (1, with the "
        "probability's gradient: the annotated implementation).",
        one_of("probability", "straight_through"),
    )
    selection: str = key(
        "argmax",
        "argmax, or sample: experts drawn from the router's probabilities, in training (paper, appendix C).",
        one_of("argmax", "sample"),
    )
    drop_order: str = key(
        "position",
        "Who gets a slot first: position (row, then place in it), random (the annotated implementation; training "
        "only), probability (the surest first: V-MoE). The last two let a token see its own future where tokens are "
        "dropped.",
        one_of("position", "random", "probability"),
    )
    queue_order: str = key(
        "token",
        "For top_k >= 2: token (all choices of a token together), choice (all first choices first: GShard; sees the "
        "future).",
        one_of("token", "choice"),
    )
    overflow: str = key(
        "drop",
        "A choice without a slot: drop (adds 0: paper, section 2.2), reroute (tries its next best expert: "
        "No-Token-Left-Behind, appendix B; sees the future), passthrough (gate x the layer's input: the annotated "
        "implementation).",
        one_of("drop", "reroute", "passthrough"),
    )
    capacity_group: str = key(
        "batch",
        "Who shares an expert's slots: batch (all rows: paper, eq. 3), sequence (each row has its own).",
        one_of("batch", "sequence"),
    )
    random_drop_rate: float = key(
        0.0,
        "Share of choices dropped at random in training: a control, since dropping also acts as dropout does.",
        BELOW_ONE,
    )


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
