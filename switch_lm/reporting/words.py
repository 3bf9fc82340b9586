"""How a report writes estimates, and what a sweep will be able to resolve."""

from collections.abc import Mapping, Sequence
from typing import Any

from switch_lm.config.rules import show
from switch_lm.pages.numbers import plain
from switch_lm.reporting.keys import is_ignored
from switch_lm.stats.corrections import ASSUMED, planned
from switch_lm.stats.intervals import POWER, Estimate


def spread(estimate: Estimate | None, digits: int) -> str:
    """Mean ± half of the 95% interval."""
    mean = plain(estimate.mean if estimate else None, digits)
    if estimate is None or (half := estimate.half()) is None:
        return f"{mean} (one seed)" if estimate is not None and estimate.count == 1 else mean
    return f"{mean} ± {plain(half, digits)}"


def planned_words(jobs: Sequence[Mapping[str, Any]]) -> str:
    """The difference that so many variants and seeds resolve; nothing for a search, or where nothing is compared."""
    variants = {tuple(show(value) for key, value in job.items() if not is_ignored(key)) for job in jobs}
    seeds = {show(job["seed"]) for job in jobs if "seed" in job}
    if len(variants) < 2:
        return ""
    if (difference := planned(len(variants), len(seeds))) is None:
        return "no difference, with one seed; several: seed=0,1,2,3,4"
    runs = f"{len(variants)} variants, {len(seeds)} seeds, a deviation of {ASSUMED:.3f} assumed"
    return f"a difference of {difference:.3f} nats from one control, in {POWER * 100:.0f}% of such sweeps ({runs})"
