"""What can be compared: with which control, by how much over the seeds of both, and what the loss costs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from switch_lm.reporting.keys import is_routing
from switch_lm.reporting.records import Crossing, Record, crossing
from switch_lm.reporting.variants import ALPHA, CAPACITY, EXPERTS, RANDOM_DROPS, Variant, group, ladders, pairs
from switch_lm.stats.intervals import Estimate, paired

LOSS, TRAIN_CAPACITY, SECONDS = "val_loss", "val_loss_train_capacity", "seconds to the threshold"
FIGURES = (LOSS, TRAIN_CAPACITY, SECONDS)  # in a report's order
EQUAL_COMPUTATION, EQUAL_PARAMETERS, UNEQUAL = "equal computation", "equal parameters", "unequal computation"
KINDS = (EQUAL_COMPUTATION, UNEQUAL, EQUAL_PARAMETERS, CAPACITY, ALPHA, EXPERTS, RANDOM_DROPS)  # in a report's order
MACHINE = ("device", "name", "precision", "threads", "compile")  # what seconds depend on
ENOUGH_SEEDS = 5
TRAINING, PER_TOKEN = "computation.training", "computation.inference_per_token"
SPEED = "inference_tokens_per_second"
ROUTER, FORWARD = "computation.forward_per_token.router", "computation.forward_per_token.executed"
MEGA, TERA = 1e-6, 1e-12
SAME_WORK = 0.02  # capacities are rounded up to whole slots; more padding than this is no rounding


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
        if self.estimate is None or self.estimate.resolved:
            return "resolved" if self.estimate else "not compared"
        return "not resolved" if self.estimate.count < ENOUGH_SEEDS else "no difference shown"


@dataclass(frozen=True)
class Threshold:
    """The loss to which steps and seconds are counted; `origin` says where it comes from."""

    loss: float
    origin: str


@dataclass(frozen=True)
class Study:
    """Runs, grouped. `threshold` is None where no run is finished."""

    records: tuple[Record, ...]
    variants: tuple[Variant, ...]
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

    def crossings(self, variant: Variant) -> dict[int | None, Crossing | None]:
        """When each seed with a learning curve reached the threshold."""
        if self.threshold is None:
            return {}
        return {seed: crossing(curve.validations, self.threshold.loss) for seed, curve in variant.curves.items()}


def study(records: Sequence[Record], *, threshold: float | None = None) -> Study:
    """The threshold is by default what every seed of the dense control of equal computation reaches, or else every run.

    It is rounded up to 0.01.
    """
    variants, chosen = group(records), None
    controls = [dense for sparse in variants for dense in variants if matches_computation(sparse, dense)][:1]
    losses = [loss for variant in controls or variants for loss in variant.by_seed(LOSS).values()]
    if threshold is not None:
        chosen = Threshold(threshold, "as asked for")
    elif losses:
        of = f" of {controls[0].label}, the control of equal computation" if controls else ""
        loss = math.ceil(round(max(losses) * 100, 9)) / 100  # rounded first: 1.53 * 100 is 153.00000000000003
        chosen = Threshold(loss, f"the highest final loss{of}, rounded up to 0.01")
    return Study(tuple(records), variants, chosen)


# --- Controls


def is_control(sparse: Variant, dense: Variant) -> bool:
    """A sparse and a dense variant of the same training, text and sizes, but perhaps another d_ff."""
    if sparse.dense or not dense.dense:
        return False
    keys = (sparse.config.keys() | dense.config.keys()) - {"model.d_ff"}
    return all(is_routing(key) or sparse.config.get(key) == dense.config.get(key) for key in keys)


def matches_computation(sparse: Variant, dense: Variant) -> bool:
    """Whether they execute the same but for the router: equal sizes and training, one expert per token, no padding.

    That is so at capacity factor 1.0 or dropless, top-1 and without a shared expert, unless the ledger shows padding.
    """
    one_each = sparse.config.get("router.top_k") == 1 and not sparse.config["model.shared_expert"]
    fits = (
        one_each and sparse.capacity_factor in (None, 1.0) and sparse.config["model.d_ff"] == dense.config["model.d_ff"]
    )
    if not fits or not is_control(sparse, dense):
        return False
    own, router, other = sparse.mean(FORWARD), sparse.mean(ROUTER), dense.mean(FORWARD)
    if own is None or router is None or other is None:
        return True
    return abs((own - router) / other - 1.0) <= SAME_WORK


def matches_parameters(sparse: Variant, dense: Variant) -> bool:
    """Whether the dense feed-forwards are as wide as all experts of a layer together, all else being equal."""
    experts, every = sparse.config[EXPERTS], sparse.config["model.switch_every"]
    if not is_control(sparse, dense) or every != 1 or sparse.config["model.shared_expert"]:
        return False
    return experts > 1 and bool(dense.config["model.d_ff"] == experts * sparse.config["model.d_ff"])


def more_training(ours: Variant, theirs: Variant) -> float | None:
    """By which share `ours` executes more in training than `theirs`, without the optimizer."""
    own, other = ours.mean(TRAINING), theirs.mean(TRAINING)
    return own / other - 1.0 if own is not None and other else None


def machines(*variants: Variant) -> set[str]:
    """On what the runs were computed; a run that does not say is taken to be on one unknown machine."""
    return {" ".join(str(r.result.get(f"hardware.{k}")) for k in MACHINE) for v in variants for r in v.runs}


def dropped_of(variant: Variant) -> Estimate | None:
    """The share of choices dropped in training: over the whole run, or at its end where an older run says no more."""
    return variant.estimate("dropped_whole_run") or variant.estimate("dropped")


# --- Differences


def compare(study: Study) -> list[Difference]:
    """Every difference that a report states, so that their number can be stated too."""
    differences = [*_against_dense(study), *_on_ladders(study), *_random_drops(study)]
    controlled = [d for figure in FIGURES for d in differences if (d.kind, d.figure) == (EQUAL_COMPUTATION, figure)]
    return controlled + [d for kind in KINDS[1:] for d in differences if d.kind == kind]


def _difference(ours: Variant, theirs: Variant, kind: str, figure: str = LOSS) -> Difference:
    return Difference(ours, theirs, kind, figure, paired(ours.by_seed(figure), theirs.by_seed(figure)))


def _against_dense(study: Study) -> Iterator[Difference]:
    for sparse, dense in product(study.sparse, study.dense):
        only_a_control = sparse.config.get(RANDOM_DROPS) and _without_random_drops(sparse, study)
        if only_a_control or not is_control(sparse, dense):
            continue
        if matches_computation(sparse, dense):
            yield _difference(sparse, dense, EQUAL_COMPUTATION)
            if not sparse.dropless and sparse.by_seed(TRAIN_CAPACITY):
                yield _difference(sparse, dense, EQUAL_COMPUTATION, TRAIN_CAPACITY)
            yield _seconds(study, sparse, dense)
        elif matches_parameters(sparse, dense):
            yield _difference(sparse, dense, EQUAL_PARAMETERS)
        elif sparse.config["model.d_ff"] == dense.config["model.d_ff"]:
            yield _difference(sparse, dense, UNEQUAL)


def _seconds(study: Study, sparse: Variant, dense: Variant) -> Difference:
    """Only on one machine, and if every seed of both reached the threshold: the mean of those that did is too low."""
    sides = [{seed: hit.seconds if hit else None for seed, hit in study.crossings(v).items()} for v in (sparse, dense)]
    shared = sides[0].keys() & sides[1].keys()
    known = [{seed: seconds for seed in shared if (seconds := side[seed]) is not None} for side in sides]
    comparable = len(machines(sparse, dense)) == 1 and all(len(side) == len(shared) for side in known)
    return Difference(sparse, dense, EQUAL_COMPUTATION, SECONDS, paired(*known) if comparable else None)


def _on_ladders(study: Study) -> Iterator[Difference]:
    """From each rung to the next: the loss, and at the training capacity where that is another figure."""
    for key in (CAPACITY, ALPHA, EXPERTS):
        for lower, upper in (pair for ladder in ladders(study.variants, key) for pair in pairs(ladder)):
            loss, at_capacity = (_difference(upper, lower, key, figure) for figure in (LOSS, TRAIN_CAPACITY))
            yield loss
            if key == CAPACITY and at_capacity.estimate not in (None, loss.estimate):
                yield at_capacity


def _random_drops(study: Study) -> Iterator[Difference]:
    """Random drops without a capacity against neither, and the nearest capacity against random drops."""
    for control in study.sparse:
        if not control.dropless or not (rate := control.config.get(RANDOM_DROPS)):
            continue
        twins = _without_random_drops(control, study)
        yield from (_difference(control, v, RANDOM_DROPS) for v in twins if v.dropless)
        limited = [(abs(dropped.mean - rate), v) for v in twins if not v.dropless and (dropped := dropped_of(v))]
        if limited:
            yield _difference(min(limited, key=lambda entry: entry[0])[1], control, RANDOM_DROPS)


def _without_random_drops(variant: Variant, study: Study) -> list[Variant]:
    """Those that are equal in all but random drops and capacity, and drop nothing at random."""
    keys = [key for key in variant.config if key not in (RANDOM_DROPS, CAPACITY)]
    others = [other for other in study.sparse if not other.config.get(RANDOM_DROPS)]
    return [other for other in others if all(other.config.get(key) == variant.config[key] for key in keys)]


# --- Frontier


@dataclass(frozen=True)
class Axis:
    """A cost: the figure that holds it, as `scale` x it, or `scale` / it where a speed is given."""

    name: str
    heading: str
    loss: str
    figure: str
    scale: float = 1.0
    inverse: bool = False

    def cost(self, variant: Variant) -> float | None:
        value = variant.mean(self.figure)
        if value is None or (self.inverse and value == 0.0):
            return None
        return self.scale / value if self.inverse else self.scale * value

    def places(self, variants: Iterable[Variant]) -> list[tuple[Variant, float, Estimate]]:
        """The variants of which both the cost and the loss are known."""
        pairs = [(variant, self.cost(variant), variant.estimate(self.loss)) for variant in variants]
        return [(variant, cost, loss) for variant, cost, loss in pairs if cost is not None and loss is not None]

    def front(self, variants: Iterable[Variant]) -> set[str]:
        """The labels of the Pareto set, by means."""
        known = self.places(variants)
        marks = pareto([(cost, loss.mean) for _, cost, loss in known])
        return {variant.label for (variant, _, _), mark in zip(known, marks, strict=True) if mark}


AXES = (
    Axis("training_computation", "Training computation (TFLOP)", LOSS, TRAINING, TERA),
    Axis("training_seconds", "Training time (s)", LOSS, "training_seconds"),
    Axis("parameters", "Parameters (millions)", LOSS, "parameters", MEGA),
    Axis("inference_computation", "Inference computation (MFLOP per token)", TRAIN_CAPACITY, PER_TOKEN, MEGA),
    Axis("inference_time", "Inference time (microseconds per token)", TRAIN_CAPACITY, SPEED, 1e6, inverse=True),
    Axis("inference_parameters", "Parameters (millions), at capacity", TRAIN_CAPACITY, "parameters", MEGA),
)


def pareto(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """For each point, whether no other is at least as low in both coordinates and lower in one."""
    return tuple(
        not any(x <= own_x and y <= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points
    )
