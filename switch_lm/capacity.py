"""How many tokens an expert may take: the one place that rounds it."""

from __future__ import annotations

from fractions import Fraction


def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float | None) -> int | None:
    """C = min(T, max(1, ceil(capacity_factor x T / E))), or None (no limit) where the factor is None.

    Exact: in floats ceil(1.1 x 100 / 10) is 12. Rounding up and the minimum of 1 are ours, the paper gives neither.
    Source: Switch Transformers, eq. 3.
    """
    if capacity_factor is None:
        return None
    factor = Fraction(str(capacity_factor))
    slots = -(-factor.numerator * num_tokens // (factor.denominator * num_experts))
    return min(num_tokens, max(1, slots))
