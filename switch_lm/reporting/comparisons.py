"""What is compared, in families that are fixed before any result is known, and by how much each pair differs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from switch_lm.reporting.cohorts import Cohort, cohorts
from switch_lm.reporting.controls import (
    EQUAL_COMPUTATION,
    EQUAL_PARAMETERS,
    EQUAL_TOTAL,
    LOSS,
    TRAIN_CAPACITY,
    UNEQUAL,
    controls,
    kind_of,
    machines,
    matches_parameters,
)
from switch_lm.reporting.records import TAIL_DROPPED, Crossing, Record, crossing
from switch_lm.reporting.times import RUNG, TimeRatio, lowest_rung, time_ratio
from switch_lm.reporting.variants import ALPHA, CAPACITY, EXPERTS, RANDOM_DROPS, Variant, group, ladders, pairs
from switch_lm.stats.contrasts import ENOUGH_SEEDS, Pool
from switch_lm.stats.corrections import Compared, holm
from switch_lm.stats.intervals import CONFIDENCE, Estimate

SECONDS, CHANCE = "time to a loss", "against chance"
CONTROL, LADDER, REST = FAMILIES = ("control", "ladder", "rest")
KINDS = (EQUAL_COMPUTATION, EQUAL_TOTAL, UNEQUAL, EQUAL_PARAMETERS)  # in a report's order; others follow
LEFT_OUT_MARK, WIDE_MARK = "‡", "†"


@dataclass(frozen=True)
class Difference:
    """`figure` of `ours` less that of `theirs`; `compared` is None where they cannot be compared.

    That of SECONDS is of the logarithms of times, of which `time` says more. `marks` of a variant: it is not in the
    common deviation.
    """

    ours: Variant
    theirs: Variant
    kind: str
    figure: str
    family: str
    cohort: Cohort
    compared: Compared | None = None
    time: TimeRatio | None = None
    marks: tuple[str, str] = ("", "")

    @property
    def estimate(self) -> Estimate | None:
        return self.compared.estimate if self.compared else None

    @property
    def resolved(self) -> bool:
        return self.compared is not None and self.compared.resolved

    @property
    def verdict(self) -> str:
        if self.estimate is None:
            return "not compared"
        if self.time is not None and self.time.missed:
            return "not resolved"
        if self.estimate.error is None:
            return "one seed" if self.estimate.count < 2 else "no spread"
        return "resolved" if self.resolved else "not resolved"


@dataclass(frozen=True)
class Threshold:
    """The loss to which steps and seconds are counted; `origin` says where it comes from."""

    loss: float
    origin: str


@dataclass(frozen=True)
class Study:
    """Runs, grouped. `threshold` is None where no finished run has a learning curve."""

    records: tuple[Record, ...]
    variants: tuple[Variant, ...]
    cohorts: tuple[Cohort, ...]
    threshold: Threshold | None

    @property
    def sparse(self) -> list[Variant]:
        return [variant for variant in self.variants if not variant.dense]

    @property
    def dense(self) -> list[Variant]:
        return [variant for variant in self.variants if variant.dense]

    @property
    def used(self) -> list[Record]:
        return [run for variant in self.variants for run in variant.runs]

    @property
    def several_machines(self) -> bool:
        """Whether seconds cannot be compared."""
        return len(machines(*self.variants)) > 1

    def crossings(self, variant: Variant) -> dict[int | None, Crossing | None]:
        """When each seed with a learning curve reached the threshold."""
        if self.threshold is None:
            return {}
        return {seed: crossing(curve, self.threshold.loss) for seed, curve in variant.validations.items()}


def study(records: Sequence[Record], *, threshold: float | None = None) -> Study:
    """The threshold is by default the lowest that half of the seeds of the control and of another variant reached."""
    variants = group(records)
    pooled = cohorts(records, variants)
    chosen = Threshold(threshold, "as asked for") if threshold is not None else _threshold(variants, pooled)
    return Study(tuple(records), variants, pooled, chosen)


def _threshold(variants: Sequence[Variant], pooled: Sequence[Cohort]) -> Threshold | None:
    if not variants:
        return None
    control = pooled[0].control if pooled else variants[0]
    others = [v for v in variants if v is not control and v.validations]
    rungs = [lowest_rung(control.validations, *one) for one in ([[other.validations] for other in others] or [[]])]
    known = [rung for rung in rungs if rung is not None]
    of = f" of `{control.label}`{' and of another variant' if others else ''}"
    origin = f"the lowest multiple of {RUNG} that at least half of the seeds{of} reached"
    return Threshold(min(known), origin) if known else None


def dropped_of(variant: Variant) -> Estimate | None:
    """The share of choices dropped in training: over the whole run, or over its last fifth where a run says no more."""
    return variant.estimate("dropped_whole_run") or variant.estimate(TAIL_DROPPED)


# --- Families


def compare(study: Study) -> list[Difference]:
    """Every difference that a report states, with the interval that its family allows.

    All comparisons with a control are one family, of whose 5% each cohort has its share; ladders and the rest are one
    family each.
    """
    control = [one for cohort, share in confidences(study).items() for one in _with_control(cohort, share)]
    ladder = [difference for cohort in study.cohorts for difference in _steps(cohort)]
    rest = [difference for cohort in study.cohorts for difference in _rest(cohort, control)]
    stated = {frozenset((one.ours, one.theirs)) for one in control}  # once is enough
    ladder, rest = (
        [d for d in every if d.figure != LOSS or {d.ours, d.theirs} not in stated] for every in (ladder, rest)
    )
    return [*control, *_corrected(ladder), *_corrected(rest)]


def family_pairs(cohort: Cohort) -> list[tuple[Variant, Variant]]:
    """Each variant with its controls, those of equal computation first."""
    dense = [variant for variant in cohort.variants if variant.dense]
    result = [(v, other) for v in cohort.variants if not v.dense for other in controls(v, dense, cohort.control)]
    result += [(v, cohort.control) for v in dense if v is not cohort.control]
    place = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(result, key=lambda pair: place.get(kind_of(*pair), len(KINDS)))


def confidences(study: Study) -> dict[Cohort, float]:
    """Of each cohort's comparisons with its controls together, so that all cohorts' together have 95%."""
    numbers = {
        cohort: sum(cohort.pools[LOSS].difference(pair).error is not None for pair in family_pairs(cohort))
        for cohort in study.cohorts
    }
    every = max(1, sum(numbers.values()))
    return {cohort: 1.0 - (1.0 - CONFIDENCE) * number / every for cohort, number in numbers.items()}


def assumed_alike(cohorts: Iterable[Cohort]) -> bool:
    """Whether any interval rests on equal spreads, with too few seeds to see that they are unequal."""
    pools = [cohort.pools[LOSS] for cohort in cohorts]
    pooled = [pool for pool in pools if not pool.one_way and pool.least_squares.deviation > 0.0]
    several = [[len(own) for own in pool.values.values() if len(own) > 1] for pool in pooled]
    seeds = [min(numbers) for numbers in several if len(numbers) > 2]  # two have the deviation of their difference
    return min(seeds, default=ENOUGH_SEEDS) < ENOUGH_SEEDS


def _with_control(cohort: Cohort, confidence: float) -> list[Difference]:
    members = family_pairs(cohort)
    differences = [_difference(cohort, *pair, kind_of(*pair), CONTROL) for pair in members]
    corrected = cohort.pools[LOSS].family(members, confidence)
    return [replace(one, compared=own) for one, own in zip(differences, corrected, strict=True)]


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Those of one family, by Holm."""
    known = [one.estimate for one in differences if one.estimate is not None]
    corrected = iter(holm(known))
    return [replace(one, compared=next(corrected)) if one.estimate is not None else one for one in differences]


def _difference(
    cohort: Cohort, ours: Variant, theirs: Variant, kind: str, family: str, figure: str = LOSS
) -> Difference:
    pool = cohort.pools[figure]
    known = ours in pool.values and theirs in pool.values
    compared = Compared(pool.difference((ours, theirs))) if known else None
    marks = (_mark(pool, ours), _mark(pool, theirs))
    return Difference(ours, theirs, kind, figure, family, cohort, compared, marks=marks)


def _mark(pool: Pool[Variant], variant: Variant) -> str:
    return LEFT_OUT_MARK if variant in pool.left_out else WIDE_MARK if variant in pool.wider else ""


def _steps(cohort: Cohort) -> Iterator[Difference]:
    """From each rung of a ladder to the next."""
    for key, ladder in _ladders(cohort):
        yield from (_difference(cohort, upper, lower, key, LADDER) for lower, upper in pairwise(ladder))


def _ladders(cohort: Cohort) -> list[tuple[str, tuple[Variant, ...]]]:
    return [(key, ladder) for key in (CAPACITY, ALPHA, EXPERTS) for ladder in ladders(cohort.variants, key)]


def _rest(cohort: Cohort, control: Iterable[Difference]) -> Iterator[Difference]:
    for one in control:
        if one.kind == EQUAL_COMPUTATION and one.cohort is cohort:
            if not one.ours.dropless and one.ours.by_seed(TRAIN_CAPACITY):
                yield _difference(cohort, one.ours, one.theirs, one.kind, REST, TRAIN_CAPACITY)
            yield _times(cohort, one.ours, one.theirs)
    for sparse in cohort.variants:
        for dense in cohort.variants:
            if not sparse.dense and matches_parameters(sparse, dense):
                yield _difference(cohort, sparse, dense, EQUAL_PARAMETERS, REST)
        if sparse.random:
            learned = [v for v in cohort.variants if not v.dense and not v.random]
            yield from (_difference(cohort, other, sparse, CHANCE, REST) for other in learned)
    yield from _along_ladders(cohort)
    yield from _random_drops(cohort)


def _times(cohort: Cohort, sparse: Variant, dense: Variant) -> Difference:
    """Only on one machine."""
    time = time_ratio(sparse.validations, dense.validations) if len(machines(sparse, dense)) == 1 else None
    compared = None if time is None else Compared(time.estimate)
    return Difference(sparse, dense, EQUAL_COMPUTATION, SECONDS, REST, cohort, compared, time)


def _along_ladders(cohort: Cohort) -> Iterator[Difference]:
    """The two ends of each, and for capacities the loss at that of training, where it is another figure."""
    for key, ladder in _ladders(cohort):
        ends = pairs(ladder)[len(ladder) - 1 :]
        yield from (_difference(cohort, upper, lower, key, REST) for lower, upper in ends)
        if key == CAPACITY:
            yield from (
                _difference(cohort, upper, lower, key, REST, TRAIN_CAPACITY)
                for lower, upper in pairs(ladder)
                if any(v.by_seed(TRAIN_CAPACITY) not in ({}, v.by_seed(LOSS)) for v in (lower, upper))
            )


def _random_drops(cohort: Cohort) -> Iterator[Difference]:
    """Random drops without a capacity against neither, and the nearest capacity against random drops."""
    for control in cohort.variants:
        if not control.dropless or not (rate := control.config.get(RANDOM_DROPS)):
            continue
        twins = _without_random_drops(control, cohort)
        yield from (_difference(cohort, control, v, RANDOM_DROPS, REST) for v in twins if v.dropless)
        limited = [(abs(dropped.mean - rate), v) for v in twins if not v.dropless and (dropped := dropped_of(v))]
        if limited:
            nearest = min(limited, key=lambda entry: entry[0])[1]
            yield _difference(cohort, nearest, control, RANDOM_DROPS, REST)


def _without_random_drops(variant: Variant, cohort: Cohort) -> list[Variant]:
    """Those that are equal in all but random drops and capacity, and drop nothing at random."""
    keys = [key for key in variant.config if key not in (RANDOM_DROPS, CAPACITY)]
    others = [other for other in cohort.variants if not other.dense and not other.config.get(RANDOM_DROPS)]
    return [other for other in others if all(other.config.get(key) == variant.config[key] for key in keys)]
