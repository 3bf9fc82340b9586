"""Which variants are compared with each other: those whose runs differ in nothing but what was varied and the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from switch_lm.reporting.controls import LOSS, TRAIN_CAPACITY, dense_control
from switch_lm.reporting.records import Record
from switch_lm.reporting.variants import Variant, frozen
from switch_lm.stats.contrasts import Pool

NEVER_VARIED = "text"  # losses of two texts are not compared


@dataclass(frozen=True, eq=False)
class Cohort:
    """`control`: dense where there is a dense control of any, else the first value of what was varied."""

    variants: tuple[Variant, ...]
    control: Variant

    @cached_property
    def pools(self) -> dict[str, Pool[Variant]]:
        """By figure, of the variants that have it."""
        values = {figure: {v: v.by_known_seed(figure) for v in self.variants} for figure in (LOSS, TRAIN_CAPACITY)}
        return {figure: Pool({v: own for v, own in every.items() if own}) for figure, every in values.items()}


def cohorts(records: Sequence[Record], variants: Sequence[Variant]) -> tuple[Cohort, ...]:
    """Without trials of a search, which were chosen by their results, and without runs of unknown seed."""
    known = [variant for variant in variants if not variant.searched and variant.by_known_seed(LOSS)]
    varied, groups = _varied(known), dict[object, list[Variant]]()
    for variant in known:
        stated = {key: value for key, value in variant.config.items() if value is not None}  # dense states no router
        groups.setdefault(frozen(stated, without=varied), []).append(variant)
    return tuple(Cohort(tuple(own), dense_control(own) or _first(own, records)) for own in groups.values())


def cohort_keys(cohorts: Sequence[Cohort]) -> list[str]:
    """The keys in which no variant of one cohort agrees with one of every other."""
    keys = {key for cohort in cohorts for variant in cohort.variants for key in variant.config}
    values = {key: [{repr(v.config.get(key)) for v in cohort.variants} for cohort in cohorts] for key in keys}
    return sorted(key for key, own in values.items() if len(own) > 1 and not set.intersection(*own))


def _varied(variants: Sequence[Variant]) -> set[str]:
    """The keys in which the variants of any sweep differ; runs of no sweep, or of one of a single variant, are one."""
    sweeps: dict[Path | None, list[Variant]] = {}
    for variant in variants:
        for sweep in {run.sweep for run in variant.runs}:
            sweeps.setdefault(sweep, []).append(variant)
    single = [own for sweep, own in sweeps.items() if sweep is None or len(own) == 1]
    groups = [own for own in sweeps.values() if len(own) > 1] + [[variant for own in single for variant in own]]
    return {key for own in groups for key in _differing(own)} - {NEVER_VARIED}


def _differing(variants: Sequence[Variant]) -> list[str]:
    keys = {key for variant in variants for key in variant.config}
    return [key for key in keys if len({repr(variant.config.get(key)) for variant in variants}) > 1]


def _first(variants: Sequence[Variant], records: Sequence[Record]) -> Variant:
    """The one that the sweep planned first, or else that of the run given first."""
    planned: dict[object, int] = {}
    for record in sorted((record for record in records if record.job is not None), key=lambda record: record.job or 0):
        planned.setdefault(_plan_of(record), record.job or 0)
    owner = {id(run): variant for variant in variants for run in variant.runs}
    own = [record for record in records if id(record) in owner]
    return owner[id(min(own, key=lambda record: planned.get(_plan_of(record), 0)))]


def _plan_of(record: Record) -> object:
    return record.sweep, frozen(record.overrides, without=("seed",))
