"""The tables of a report: the paper's Table 1, who drops and balances, the frontier, the computation."""

from __future__ import annotations

from switch_lm.config import show
from switch_lm.pages.document import Cell, Table
from switch_lm.report.comparisons import Comparisons, Difference
from switch_lm.report.form import MISSING, figures, mean_cell, plain, share, spread
from switch_lm.report.frontier import AXES, Axis, front
from switch_lm.report.groups import Variant
from switch_lm.report.statistics import Crossing, estimate
from switch_lm.report.study import LOSS, TRAIN_CAPACITY, Study

MEGA, TERA = 1e-6, 1e-12
KINDS = ("useful", "padded", "dropped", "router", "feed_forward", "attention", "head", "executed")
PARAMETERS = ("Parameters (millions)", "Active for a token (millions)")
BALANCE = (
    "Model", "Capacity factor", "Alpha", "Dropped at the end", "Dropped in the whole run", "Dropped in validation",
    "Busiest expert / mean", "Router entropy (nats)", "Loss", "Loss at capacity",
)  # fmt: skip


def table_1(study: Study) -> Table:
    """Table 1 of the paper: model, capacity factor, quality, time to a threshold, speed."""
    steps = {int(value) for variant in study.variants for value in variant.by_seed("steps").values()}
    after = f"Loss after {steps.pop():,} steps" if len(steps) == 1 else "Loss at the last step"
    to = f"to a loss of {study.threshold.shown}" if study.threshold else "to the threshold"
    note = (
        "Mean ± standard deviation over seeds. Loss: nats a character on the whole validation split, nothing dropped, "
        "at the last step, not at the best one."
    )
    if study.threshold:
        note += f" Threshold: {study.threshold.origin}; reached on the straight line between two validations."
    return Table(
        "Model against capacity factor, as in Table 1 of the paper",
        ("Model", "Capacity factor", after, f"Steps {to}", f"Seconds {to}", "Tokens per second", "Seeds"),
        tuple(_row_1(study, variant) for variant in study.variants),
        note,
    )


def _row_1(study: Study, variant: Variant) -> tuple[Cell, ...]:
    crossings = study.crossings(variant)
    return (
        Cell(variant.model),
        _capacity(variant),
        mean_cell(variant.estimate(LOSS), 4),
        _crossed(crossings, "steps", 0),
        _crossed(crossings, "seconds", 1),
        mean_cell(variant.estimate("tokens_per_second"), 0),
        Cell(str(len(variant.by_seed(LOSS)))),
    )


def _capacity(variant: Variant) -> Cell:
    if variant.dense:
        return Cell(MISSING)
    factor = variant.capacity_factor
    return Cell("dropless", float("inf")) if factor is None else Cell(show(factor), factor)


def _crossed(crossings: dict[int | str, Crossing | None], key: str, digits: int) -> Cell:
    """Mean ± deviation of the seeds that reach the threshold, and how many do if not all."""
    hits = [crossing for crossing in crossings.values() if crossing is not None]
    if not crossings:
        return Cell(MISSING)
    if not hits:
        return Cell("not reached", float("inf"))
    times = [float(value) for hit in hits if (value := getattr(hit, key)) is not None]
    found = estimate(times)
    text = ("at most " if any(hit.at_most for hit in hits) else "") + spread(found, digits)
    if len(hits) < len(crossings):
        text += f" (not reached in {len(crossings) - len(hits)} of {len(crossings)} seeds)"
    return Cell(text, found.mean if found else None)


def comparison_table(found: Comparisons) -> Table:
    return Table(
        "All comparisons, paired by seed",
        ("First", "Second", "What", "First minus second", "95 % interval", "Seeds", "Resolved"),
        tuple(_comparison(difference) for difference in found.all),
        "Below 0 the first is lower. Interval: Student's t over the seeds that both have. Fewer than 5 seeds are not "
        "resolved unless the interval excludes 0; with 5 or more that include 0, no difference is shown.",
    )


def _comparison(difference: Difference) -> tuple[Cell, ...]:
    found, seconds = difference.estimate, difference.figure not in (LOSS, TRAIN_CAPACITY)
    digits = 1 if seconds else 4
    what = {LOSS: "loss", TRAIN_CAPACITY: "loss at the training capacity"}.get(difference.figure, difference.figure)
    interval = MISSING
    if found is not None and found.low is not None:
        interval = f"{plain(found.low, digits)} to {plain(found.high, digits)}"
    return (
        Cell(difference.ours.label),
        Cell(difference.theirs.label),
        Cell(what),
        Cell(plain(found.mean if found else None, digits)),
        Cell(interval, found.low if found else None),
        Cell(str(found.count if found else 0)),
        Cell(difference.verdict if found else "not compared"),
    )


def balance_table(study: Study) -> Table:
    return Table(
        "Who drops, and who balances",
        BALANCE,
        tuple(_balance(variant) for variant in study.sparse),
        "Means over seeds. Dropped: share of choices that found no place, in training since the validation before the "
        "last, in all of it, and in validation at the training capacity. Busiest expert: of the worst layer, over the "
        "validation split. Entropy: of the router's probabilities at the last validation, mean over layers. Loss at "
        "capacity: the whole split with the capacity of training.",
    )


def _balance(variant: Variant) -> tuple[Cell, ...]:
    drops = [variant.mean(key) for key in ("dropped", "dropped_whole_run", "train_capacity_dropped")]
    return (
        Cell(variant.model),
        _capacity(variant),
        Cell(show(variant.config["alpha"])),
        *(Cell(share(value)) for value in drops),
        Cell(plain(variant.mean("load_max_over_mean"), 2)),
        Cell(plain(variant.mean("router_entropy"), 3)),
        mean_cell(variant.estimate(LOSS), 4),
        mean_cell(variant.estimate(TRAIN_CAPACITY), 4),
    )


def frontier_table(study: Study) -> Table:
    """Every axis of the frontier as a column; a star where no other variant is at least as good in both."""
    fronts = [front(axis, study.variants) for axis in AXES]
    rows = [
        (Cell(variant.label), *(_on_axis(axis, members, variant) for axis, members in zip(AXES, fronts, strict=True)))
        for variant in study.variants
    ]
    return Table(
        "What the loss costs",
        ("Variant", *(axis.heading for axis in AXES)),
        tuple(rows),
        "Means over seeds; * marks the Pareto set by means: no other variant is at least as low in this cost and in "
        "the loss (the first three: dropless loss; the others: loss at the training capacity), and lower in one. Where "
        "intervals overlap the mark is not resolved.",
    )


def _on_axis(axis: Axis, members: set[str], variant: Variant) -> Cell:
    value = axis.cost(variant)
    return Cell(figures(value, 4) + (" *" if variant.label in members else ""), value)


def computation_table(study: Study) -> Table:
    kinds = tuple(f"{kind.replace('_', ' ').capitalize()}" for kind in KINDS)
    return Table(
        "Where the computation goes",
        ("Variant", *kinds, "Training (TFLOP)", "Optimizer (TFLOP)", "Inference (MFLOP a token)", *PARAMETERS),
        tuple(_work(variant) for variant in study.variants),
        "Matrix products; a multiply-add is 2. The kinds: MFLOP a token in the forward pass of training, all layers. "
        "Of the experts' places, useful ones hold a token, padded ones are empty and executed all the same; dropped is "
        "what the dropped choices would have cost and is not executed. The backward pass takes twice that. Training: "
        "forward and backward of the whole run. The optimizer's products (Muon) come on top and are in no picture.",
    )


def _work(variant: Variant) -> tuple[Cell, ...]:
    kinds = [variant.mean(f"computation.forward_per_token.{kind}") for kind in KINDS]
    totals = [(variant.mean(f"computation.{key}"), TERA) for key in ("training", "optimizer")]
    totals += [(variant.mean(k), MEGA) for k in ("computation.inference_per_token", "parameters", "active_parameters")]
    cells = [Cell(plain(value, 3, MEGA)) for value in kinds]
    return Cell(variant.label), *cells, *(Cell(figures(v and v * scale, 4)) for v, scale in totals)
