"""Who stands where: losses, places, differences, times and speed-ups, from what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from contest import plan
from contest.plan import DENSE, DENSE_CURVE, ENTRIES, TABLE, Entry
from switch_lm.stats.contrasts import Pool
from switch_lm.stats.corrections import Compared
from switch_lm.stats.intervals import Estimate, estimate
from switch_lm.stats.speed_up import SpeedUp, speed_up

CLASS_WIDTH = 0.03  # of the number of experts per token: an entry further away is not ranked
Pairs = Mapping[tuple[str, str], Compared]


@dataclass(frozen=True, eq=False)
class Standing:
    """All that is known of the runs of the tables. A name is a variant, with its capacity factor if it has one."""

    league: plan.League
    results: plan.Results
    stages: Mapping[str, Mapping[str, Any]]
    steps: int

    @cached_property
    def pool(self) -> Pool[str]:
        """The losses of all that ran, with one deviation."""
        names = dict.fromkeys((job.variant, job.capacity_factor) for job in self.league.jobs(TABLE, self.steps))
        values = {plan.name_of(*name): self.by_seed("val_loss", *name) for name in names}
        return Pool({name: own for name, own in values.items() if own})

    def by_seed(self, figure: str, variant: str, factor: float | None = None) -> dict[int, float]:
        return self.results.by_seed(figure, TABLE, variant, self.steps, factor)

    def mean(self, figure: str, variant: str, factor: float | None = None) -> float | None:
        own = self.by_seed(figure, variant, factor)
        return fmean(own.values()) if own else None

    def loss(self, name: str) -> Estimate:
        found = estimate(list(self.pool.values[name].values()))
        assert found is not None
        return found

    def measured(self, stage: str, name: str) -> Mapping[str, Any]:
        """Empty where it was not measured."""
        own: Mapping[str, Any] = self.stages.get(stage, {})
        return own.get(name) or own.get("all", {}).get("entries", {}).get(name) or {}

    def seconds(self, name: str) -> float | None:
        """Of the whole training: so many steps, as they were timed afterwards."""
        timed = self.measured("seconds", name)
        return self.steps * float(timed["seconds"]["median"]) if timed else None

    @cached_property
    def curve(self) -> dict[float, dict[int, float]]:
        """Dense's losses by the seconds of a whole run and by seed; empty without its seconds."""
        whole = self.seconds(DENSE.variant) or 0.0
        parts = {round(share * self.steps): DENSE_CURVE for share in self.league.lengths} | {self.steps: TABLE}
        losses = {n: self.results.by_seed("val_loss", parts[n], DENSE.variant, n) for n in sorted(parts)}
        return {whole * n / self.steps: own for n, own in losses.items() if own and whole}

    def speed_up(self, name: str) -> SpeedUp | None:
        seconds, losses = self.seconds(name), self.pool.values[name]
        enough = len(self.curve) > 1 and set(losses).intersection(*self.curve.values())
        return speed_up(self.curve, losses, seconds) if seconds and enough else None

    def ranked(self, experts: int, factor: float | None = None) -> tuple[list[Entry], list[Entry]]:
        """Those of a class that ran, by loss; and those that computed another number of experts per token."""
        ran = [e for e in ENTRIES if e.experts == experts and plan.name_of(e.variant, factor) in self.pool.values]
        ran.sort(key=lambda entry: self.loss(plan.name_of(entry.variant, factor)).mean)
        numbers = [self._selected(entry.variant, factor) or experts for entry in ran]  # dense has none
        own = [entry for entry, n in zip(ran, numbers, strict=True) if abs(n / experts - 1.0) <= CLASS_WIDTH]
        return own, [entry for entry in ran if entry not in own]

    def _selected(self, variant: str, factor: float | None) -> float | None:
        """Experts per token before drops: what was dropped does not put an entry outside its class."""
        computed, dropped = (self.mean(figure, variant, factor) for figure in ("experts_per_token", "dropped"))
        return computed and computed / (1.0 - (dropped or 0.0))

    def compared(self, pairs: Iterable[tuple[str, str]]) -> Pairs:
        """The first less the second of each pair, with intervals that hold together; and the second less the first."""
        kept: list[tuple[str, str]] = []
        for pair in pairs:
            if len({*pair} & self.pool.values.keys()) == 2 and pair not in kept and pair[::-1] not in kept:
                kept.append(pair)
        found = dict(zip(kept, self.pool.family(kept), strict=True))
        return found | {pair[::-1]: reversed_(one) for pair, one in found.items()}


def reversed_(one: Compared) -> Compared:
    ends = one.interval and (-one.interval[1], -one.interval[0])
    return Compared(replace(one.estimate, mean=-one.estimate.mean), ends)
