"""Which variants are compared with each other: those whose runs differ in nothing but what was varied and the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from switch_lm.reporting.controls import LOSS, TRAIN_CAPACITY, dense_control
from switch_lm.reporting.keys import is_routing
from switch_lm.reporting.records import Record
from switch_lm.reporting.variants import Variant, frozen
from switch_lm.stats.contrasts import Pool

NEVER_VARIED = "text"  # losses of two validation texts are not compared
SWITCH_EVERY = "model.switch_every"


@dataclass(frozen=True, eq=False)
class Cohort:
    """`control`: dense where there is a dense control of any, else a first one, of which `origin` says which."""

    variants: tuple[Variant, ...]
    control: Variant
    origin: str = ""

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
    return tuple(_cohort(own, records) for own in groups.values())


def _cohort(variants: Sequence[Variant], records: Sequence[Record]) -> Cohort:
    dense = dense_control(variants)
    return Cohort(tuple(variants), *((dense,) if dense else _first(variants, records)))


def cohort_keys(cohorts: Sequence[Cohort]) -> list[str]:
    """The keys in which no variant of one cohort agrees with one of every other."""
    keys = {key for cohort in cohorts for variant in cohort.variants for key in variant.config}
    values = {key: [{repr(v.config.get(key)) for v in cohort.variants} for cohort in cohorts] for key in keys}
    return sorted(key for key, own in values.items() if len(own) > 1 and not set.intersection(*own))


def _varied(variants: Sequence[Variant]) -> set[str]:
    """The keys in which the variants of any sweep differ; runs of no sweep, or of one of a single variant, are one."""
    groups = [*(own for own in _by_sweep(variants).values() if len(own) > 1), _loose(variants)]
    return {key for own in groups for key in _differing(own)} - {NEVER_VARIED}


def _by_sweep(variants: Sequence[Variant]) -> dict[Path | None, list[Variant]]:
    sweeps: dict[Path | None, list[Variant]] = {}
    for variant in variants:
        for sweep in {run.sweep for run in variant.runs}:
            sweeps.setdefault(sweep, []).append(variant)
    return sweeps


def _loose(variants: Sequence[Variant]) -> list[Variant]:
    every = [v for sweep, own in _by_sweep(variants).items() if sweep is None or len(own) == 1 for v in own]
    return list(dict.fromkeys(every))


def loose_keys(variants: Sequence[Variant]) -> list[str]:
    """The keys in which runs of no sweep differ; of dense and sparse ones, without what follows from that."""
    loose = _loose([variant for variant in variants if not variant.searched])
    sparse = [variant for variant in loose if not variant.dense]
    keys = {key for key in _differing(loose) if not is_routing(key)} | {k for k in _differing(sparse) if is_routing(k)}
    mixed = {SWITCH_EVERY} if 0 < len(sparse) < len(loose) else set()
    return sorted((keys | mixed) - {NEVER_VARIED})


def _differing(variants: Sequence[Variant]) -> list[str]:
    keys = {key for variant in variants for key in variant.config}
    return [key for key in keys if len({repr(variant.config.get(key)) for variant in variants}) > 1]


def _first(variants: Sequence[Variant], records: Sequence[Record]) -> tuple[Variant, str]:
    """The one that the sweep planned first, or else that of the run given first; and which of these it is."""
    planned: dict[tuple[Path | None, object], int] = {}
    for record in sorted((record for record in records if record.job is not None), key=lambda record: record.job or 0):
        planned.setdefault(_plan_of(record), record.job or 0)
    owner = {id(run): variant for variant in variants for run in variant.runs}
    own = [record for record in records if id(record) in owner]
    first = min(own, key=lambda record: planned.get(_plan_of(record), 0))
    same_sweep = [plan for plan in planned if plan[0] == first.sweep]
    if first.sweep is None or len(same_sweep) < 2:
        return owner[id(first)], "the first run given"
    is_first = _plan_of(first) == min(same_sweep, key=planned.__getitem__)
    return owner[id(first)], "the first of what was varied" if is_first else "the first that finished"


def _plan_of(record: Record) -> tuple[Path | None, object]:
    return record.sweep, frozen(record.overrides, without=("seed",))
