"""Variants that differ in one key alone, in its order: capacity factor, alpha, number of experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from switch_lm.config.rules import show
from switch_lm.report.groups import Variant

CAPACITY, ALPHA, EXPERTS = "model.capacity_factor", "alpha", "model.num_experts"


@dataclass(frozen=True)
class Ladder:
    """Two or more variants that are equal in all but `key`, the lowest value first; no limit is the highest factor."""

    key: str
    rungs: tuple[Variant, ...]

    def value(self, variant: Variant) -> float:
        value = variant.config[self.key]
        return float("inf") if value is None else float(value)

    def shown(self, variant: Variant) -> str:
        value = variant.config[self.key]
        return "dropless" if value is None else show(value)

    def steps(self) -> Iterator[tuple[Variant, Variant]]:
        """Each with the next one, then the ends with each other."""
        yield from zip(self.rungs, self.rungs[1:], strict=False)
        if len(self.rungs) > 2:
            yield self.rungs[0], self.rungs[-1]


def ladders(variants: Iterable[Variant], key: str) -> list[Ladder]:
    groups: dict[tuple[tuple[str, str], ...], list[Variant]] = {}
    for variant in variants:
        if not variant.dense:
            rest = tuple(sorted((name, repr(value)) for name, value in variant.config.items() if name != key))
            groups.setdefault(rest, []).append(variant)
    found = [Ladder(key, tuple(group)) for group in groups.values() if len(group) > 1]
    return [Ladder(key, tuple(sorted(ladder.rungs, key=ladder.value))) for ladder in found]
