"""Differences between two variants over the seeds that both have, and whether they are resolved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from switch_lm.report.controls import is_control, matches_computation, matches_parameters, same_width
from switch_lm.report.groups import Variant
from switch_lm.report.ladders import ALPHA, CAPACITY, EXPERTS, Ladder, ladders
from switch_lm.report.statistics import ENOUGH_SEEDS, Estimate, paired
from switch_lm.report.study import LOSS, TRAIN_CAPACITY, Study

EQUAL_COMPUTATION, EQUAL_PARAMETERS, UNEQUAL = "equal computation", "equal parameters", "unequal computation"
RANDOM_DROPS, SECONDS = "model.random_drop_rate", "seconds to the threshold"
MACHINE = ("device", "name", "precision", "threads", "compile")  # what seconds hang on


@dataclass(frozen=True)
class Difference:
    """`figure` of `ours` minus that of `theirs`, paired by seed; `estimate` is None if they share no seed."""

    ours: Variant
    theirs: Variant
    kind: str
    figure: str
    estimate: Estimate | None

    @property
    def verdict(self) -> str:
        if self.estimate is None:
            return "no seed in common"
        if self.estimate.resolved:
            return "resolved"
        return "not resolved" if self.estimate.count < ENOUGH_SEEDS else "no difference shown"

    @property
    def resolved(self) -> bool:
        return self.verdict == "resolved"

    @property
    def lower(self) -> bool:
        return self.estimate is not None and self.estimate.mean < 0.0


@dataclass(frozen=True)
class Rung:
    """One step up a ladder, and what it does to the loss, dropless and at the training capacity."""

    ladder: Ladder
    loss: Difference
    train_capacity: Difference | None  # where it is another figure than the loss


@dataclass(frozen=True)
class Comparisons:
    """All that a report compares, so that their number can be told."""

    controlled: list[Difference] = field(default_factory=list)  # against dense of equal computation
    at_capacity: list[Difference] = field(default_factory=list)  # the same at the training capacity
    others: list[Difference] = field(default_factory=list)  # against dense of another computation
    seconds: list[Difference] = field(default_factory=list)  # to the threshold, against the former
    rungs: list[Rung] = field(default_factory=list)
    random_drops: list[Difference] = field(default_factory=list)

    @property
    def all(self) -> list[Difference]:
        pairs = [pair for rung in self.rungs for pair in (rung.loss, rung.train_capacity) if pair is not None]
        return [*self.controlled, *self.at_capacity, *self.seconds, *self.others, *pairs, *self.random_drops]

    @property
    def count(self) -> int:
        """Those with an interval."""
        return sum(pair.estimate is not None and pair.estimate.count > 1 for pair in self.all)


def compare(study: Study) -> Comparisons:
    found = Comparisons(rungs=list(_rungs(study)), random_drops=list(_random_drops(study)))
    for sparse in study.sparse:
        if _only_a_control(sparse, study):
            continue
        for dense in study.dense:
            if matches_computation(sparse, dense):
                found.controlled.append(difference(sparse, dense, EQUAL_COMPUTATION))
                if not sparse.dropless and sparse.by_seed(TRAIN_CAPACITY):
                    found.at_capacity.append(difference(sparse, dense, EQUAL_COMPUTATION, TRAIN_CAPACITY))
                found.seconds.append(_seconds(study, sparse, dense))
            elif same_width(sparse, dense):
                found.others.append(difference(sparse, dense, UNEQUAL))
            elif is_control(sparse, dense) and matches_parameters(sparse, dense):
                found.others.append(difference(sparse, dense, EQUAL_PARAMETERS))
    found.others.sort(key=lambda difference: difference.kind == EQUAL_PARAMETERS)
    return found


def difference(ours: Variant, theirs: Variant, kind: str, figure: str = LOSS) -> Difference:
    return Difference(ours, theirs, kind, figure, paired(ours.by_seed(figure), theirs.by_seed(figure)))


def _seconds(study: Study, sparse: Variant, dense: Variant) -> Difference:
    """Only on one machine, and if every seed of both reached the threshold: the mean of those that did is too low."""
    own, other = ({s: c and c.seconds for s, c in study.crossings(v).items()} for v in (sparse, dense))
    shared = own.keys() & other.keys()
    reached = all(own[seed] is not None and other[seed] is not None for seed in shared)
    alike = reached and len(machines(sparse, dense)) == 1
    pairs = [{seed: side[seed] or 0.0 for seed in shared} if alike else {} for side in (own, other)]
    return Difference(sparse, dense, EQUAL_COMPUTATION, SECONDS, paired(*pairs))


def machines(*variants: Variant) -> set[str]:
    """On what the runs were computed; a run that does not say is taken to be on one unknown machine."""
    return {" ".join(str(r.result.get(f"hardware.{k}")) for k in MACHINE) for v in variants for r in v.runs}


def _rungs(study: Study) -> Iterator[Rung]:
    for key in (CAPACITY, ALPHA, EXPERTS):
        for ladder in ladders(study.variants, key):
            for lower, upper in ladder.steps():
                capacity = difference(upper, lower, key, TRAIN_CAPACITY) if key == CAPACITY else None
                loss = difference(upper, lower, key)
                tells = capacity is not None and capacity.estimate not in (None, loss.estimate)
                yield Rung(ladder, loss, capacity if tells else None)


def _random_drops(study: Study) -> Iterator[Difference]:
    """Random drops without a limit of places against neither, and the nearest capacity against random drops."""
    for control in study.sparse:
        if not control.dropless or not (rate := control.config.get(RANDOM_DROPS)):
            continue
        alike = [v for v in study.sparse if _rest(v) == _rest(control) and not v.config.get(RANDOM_DROPS)]
        yield from (difference(control, v, RANDOM_DROPS) for v in alike if v.dropless)
        limited = [(v, dropped) for v in alike if not v.dropless and (dropped := dropped_of(v)) is not None]
        if limited:
            nearest, _ = min(limited, key=lambda entry: abs(entry[1] - rate))
            yield difference(nearest, control, RANDOM_DROPS)


def _only_a_control(variant: Variant, study: Study) -> bool:
    """Whether it is there to tell what random drops do: the same without them is there too."""
    alike = (other for other in study.sparse if _rest(other) == _rest(variant))
    return bool(variant.config.get(RANDOM_DROPS)) and any(not other.config.get(RANDOM_DROPS) for other in alike)


def dropped_of(variant: Variant) -> float | None:
    """The share of choices dropped in training: over the whole run, or at its end where an older run says no more."""
    whole = variant.mean("dropped_whole_run")
    return variant.mean("dropped") if whole is None else whole


def _rest(variant: Variant) -> dict[str, object]:
    return {key: value for key, value in variant.config.items() if key not in (RANDOM_DROPS, CAPACITY)}
