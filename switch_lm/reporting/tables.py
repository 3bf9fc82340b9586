"""The tables of a report: Table 1 of the paper, comparisons, balance, the frontier, computation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from switch_lm.config.rules import show
from switch_lm.pages.document import Cell, Table
from switch_lm.reporting.comparisons import (
    CONTROL,
    FAMILIES,
    LEFT_OUT_MARK,
    SECONDS,
    WIDE_MARK,
    Difference,
    Study,
    assumed_alike,
)
from switch_lm.reporting.controls import EQUAL_COMPUTATION, EQUAL_TOTAL, LOSS, TRAIN_CAPACITY, TRAINING, machines
from switch_lm.reporting.frontier import AXES, MEGA, PER_TOKEN, TERA
from switch_lm.reporting.records import TAIL_DROPPED, Crossing
from switch_lm.reporting.times import RUNG
from switch_lm.reporting.variants import Variant, short
from switch_lm.reporting.words import MISSING, count, figures, interval, missed, percents, plain, ratios, spread
from switch_lm.stats.contrasts import ENOUGH_SEEDS, LEFT_OUT, LEFT_OUT_BY_CHANCE, OF_FEW, WIDER_BY_CHANCE
from switch_lm.stats.intervals import Estimate

WORK = ("useful", "padded", "dropped", "router", "feed_forward", "attention", "head", "executed")
DROPS = (TAIL_DROPPED, "dropped_whole_run", "train_capacity_dropped")
BALANCE = (
    "Model", "Capacity factor", "Alpha", "Dropped at the end", "Dropped in the whole run", "Dropped in validation",
    "Busiest expert / mean", "Router entropy (nats)", "Loss", "Loss at capacity",
)  # fmt: skip
KINDS = {EQUAL_COMPUTATION: "equal in the model's products", EQUAL_TOTAL: "equal in all products"}


def table_1(study: Study) -> Table:
    """Table 1 of the paper: model, capacity factor, quality, time to a threshold, speed."""
    steps = {int(value) for variant in study.variants for value in variant.by_seed("steps").values()}
    after = f"Loss after {steps.pop():,} steps" if len(steps) == 1 else "Loss at the last step"
    to = f"to a loss of {round(study.threshold.loss, 4):g}" if study.threshold else "to the threshold"
    note = (
        "Mean ± half of its 95 % interval over seeds. Loss: nats per character on the whole validation split, nothing "
        "dropped, at the last step, not at the best one."
    )
    if study.threshold:
        note += f" Threshold: {study.threshold.origin}; reached on the straight line between two validations."
    rows = [
        (
            Cell(variant.model),
            _capacity(variant),
            _mean(variant.estimate(LOSS), 4),
            _crossed(variant, crossings := study.crossings(variant), "steps", 0),
            _timed(study, variant, _crossed(variant, crossings, "seconds", 1)),
            _timed(study, variant, _mean(variant.estimate("tokens_per_second"), 0)),
            Cell(str(variant.seeds)),
        )
        for variant in study.variants
    ]
    headings = ("Model", "Capacity factor", after, f"Steps {to}", f"Seconds {to}", "Tokens per second", "Seeds")
    return Table("Model against capacity factor, as in Table 1 of the paper", headings, tuple(rows), note)


def _mean(estimate: Estimate | None, digits: int) -> Cell:
    return Cell(spread(estimate, digits), estimate.mean if estimate else None)


def _timed(study: Study, variant: Variant, cell: Cell) -> Cell:
    """With several machines the mean alone; nothing for a variant that ran on several."""
    if len(machines(variant)) > 1:
        return Cell("several machines")
    return replace(cell, text=cell.text.partition(" ± ")[0]) if study.several_machines else cell


def _capacity(variant: Variant) -> Cell:
    if variant.dense:
        return Cell(MISSING)
    factor = variant.capacity_factor
    return Cell("dropless", float("inf")) if factor is None else Cell(show(factor), factor)


def _crossed(variant: Variant, crossings: Mapping[int | None, Crossing | None], key: str, digits: int) -> Cell:
    """Mean ± of the seeds, and how many did not reach the threshold: then the mean alone, of those that did."""
    hits = [crossing for crossing in crossings.values() if crossing is not None]
    short_of = f"{len(crossings) - len(hits)} of {len(crossings)} did not reach it"
    if not hits:
        return Cell(short_of, float("inf")) if crossings else Cell(MISSING)
    time = variant.over_seeds([float(value) for hit in hits if (value := getattr(hit, key)) is not None])
    text = "at most " if any(hit.at_most for hit in hits) else ""
    if len(hits) < len(crossings):
        text += f"{plain(time.mean if time else None, digits)} ({short_of})"
    else:
        text += spread(time, digits)
    return Cell(text, time.mean if time else None)


def comparison_table(differences: Sequence[Difference]) -> Table:
    return Table(
        "All comparisons",
        ("First", "Second", "What", "Difference ±", "Corrected interval", "Resolved", "Kind"),
        tuple(map(_comparison, differences)),
        f"First less second: below 0 the first is lower. {_families(differences)}Resolved: the corrected 95 % "
        "interval excludes 0 (1 for a ratio); ±, and the interval beside a ratio, are of this comparison alone. "
        f"{_exceptions(differences)}Kind: the family, then what is equal, or the keys that differ; in brackets "
        "how many more products the first takes in training: the model's, and all with the optimizer's. A "
        "comparison of unequal computation says nothing about equal computation.",
    )


def _families(differences: Sequence[Difference]) -> str:
    """How many have an interval, and how each is corrected."""
    known = [d for d in differences if d.compared is not None and d.compared.interval is not None]
    if not known:
        return ""
    methods = dict(zip(FAMILIES, ("by the multivariate t", "by Holm", "by Holm"), strict=True))
    numbers = {family: number for family in FAMILIES if (number := sum(d.family == family for d in known))}
    texts = [f"{family} ({number}, {methods[family]})" for family, number in numbers.items()]
    families = "1 family" if len(numbers) == 1 else f"{len(numbers)} families"
    alike = ", if all variants scatter alike" if assumed_alike({d.cohort for d in known}) else ""
    holm = "Holm's intervals decide; together they do not hold in 95 %. " if numbers.keys() - {CONTROL} else ""
    return (
        f"{count(len(known), 'comparison')} with an interval, in {families} fixed beforehand: {', '.join(texts)}. A "
        f"family errs in 5 % of sweeps at most{alike}. {holm}"
    )


def _exceptions(differences: Sequence[Difference]) -> str:
    """What the marks mean that are there."""
    marks = {mark for difference in differences for mark in difference.marks}
    verdicts = {difference.verdict for difference in differences}
    rules = (
        (
            WIDE_MARK in marks,
            f"{WIDE_MARK} scatters more than the others (F test, p < {WIDER_BY_CHANCE}, with {ENOUGH_SEEDS} "
            f"seeds {OF_FEW}): its own deviation is used. ",
        ),
        (
            LEFT_OUT_MARK in marks,
            f"{LEFT_OUT_MARK} scatters over {LEFT_OUT:g} times as much as the others, so much by chance in less than "
            f"{LEFT_OUT_BY_CHANCE * 100:.0f} % of sweeps: not in the common deviation. ",
        ),
        ("no spread" in verdicts, "No spread: all agree, or too few runs share seeds; no deviation is known. "),
        ("not compared" in verdicts, "Not compared: no seed in common, no curve, or different machines. "),
        (
            any(d.figure == SECONDS for d in differences),
            f"Time: a ratio, paired by seed, to the lowest multiple of {RUNG} that at least half of the seeds of both "
            "reached. ",
        ),
        (
            any(d.time is not None and d.time.missed for d in differences),
            "A seed that did not counts as the slowest: the ratio is a bound, without an interval. ",
        ),
    )
    return "".join(rule for holds, rule in rules if holds)


def _comparison(difference: Difference) -> tuple[Cell, ...]:
    result, what = difference.estimate, {LOSS: "loss", TRAIN_CAPACITY: "loss at capacity", SECONDS: SECONDS}
    more, corrected = percents([difference], ""), difference.compared.interval if difference.compared else None
    kind = KINDS.get(difference.kind) or ", ".join(map(short, difference.kind.split(", ")))
    if difference.time is not None:
        text = f"time ratio to {difference.time.loss:g}{missed(difference)}"
        mean = plain(math.exp(difference.time.estimate.mean), 2)
        alone = difference.time.estimate.interval()
        bound = difference.time.bound
        size = MISSING if bound is None else f"{bound}{mean}, {ratios(alone)}" if alone else f"{bound}{mean}"
        ends = ratios(corrected)
    else:
        text, size, ends = what[difference.figure], spread(result, 4), interval(corrected, 4)
    return (
        Cell(f"{difference.ours.label}{difference.marks[0]}"),
        Cell(f"{difference.theirs.label}{difference.marks[1]}"),
        Cell(text),
        Cell(size, result.mean if result else None),
        Cell(ends, corrected[0] if corrected else None),
        Cell(difference.verdict),
        Cell(f"{difference.family}: {kind}{f' ({more})' if more else ''}"),
    )


def balance_table(study: Study) -> Table:
    rows = [
        (
            Cell(variant.model),
            _capacity(variant),
            Cell(show(variant.config["alpha"])),
            *(Cell(plain(variant.mean(key), 1, 100.0, " %")) for key in DROPS),
            Cell(plain(variant.mean("load_max_over_mean"), 2)),
            Cell(plain(variant.mean("router_entropy"), 3)),
            _mean(variant.estimate(LOSS), 4),
            _mean(variant.estimate(TRAIN_CAPACITY), 4),
        )
        for variant in study.sparse
    ]
    return Table(
        "Who drops, and who balances",
        BALANCE,
        tuple(rows),
        "Means over seeds. Dropped: share of choices that found no slot, over the last fifth of the planned steps, in "
        "the whole run, and in validation at the training capacity. Busiest expert: of the worst layer, over the "
        "validation split. Entropy: of the router's probabilities at the last validation, mean over layers. Loss at "
        "capacity: the whole split with the capacity of training.",
    )


def frontier_table(study: Study) -> Table:
    """Every axis of the frontier as a column; a star where no other variant is at least as good in both."""
    fronts = {axis: axis.front(study.variants) for axis in AXES}
    several = " No mark for times: these are of several machines." if study.several_machines else ""
    rows = []
    for variant in study.variants:
        costs = [(axis.cost(variant), " *" if variant.label in front else "") for axis, front in fronts.items()]
        rows.append((Cell(variant.label), *(Cell(figures(cost) + star, cost) for cost, star in costs)))
    return Table(
        "What the loss costs",
        ("Variant", *(axis.heading for axis in AXES)),
        tuple(rows),
        "Means over seeds; * marks the Pareto set by means: no other variant is at least as low in this cost and in "
        "the loss (the first three: dropless loss; the others: loss at the training capacity), and lower in one. Where "
        f"intervals overlap the mark is not resolved.{several}",
    )


def computation_table(study: Study) -> Table:
    totals = {
        "Training (TFLOP)": (TRAINING, TERA),
        "Optimizer (TFLOP)": ("computation.optimizer", TERA),
        "Inference (MFLOP per token)": (PER_TOKEN, MEGA),
        "Parameters (millions)": ("parameters", MEGA),
        "Active per token (millions)": ("active_parameters", MEGA),
    }
    rows = [
        (
            Cell(variant.label),
            *(Cell(plain(variant.mean(f"computation.forward_per_token.{kind}"), 3, MEGA)) for kind in WORK),
            *(Cell(figures(variant.mean(figure), scale)) for figure, scale in totals.values()),
        )
        for variant in study.variants
    ]
    return Table(
        "Where the computation goes",
        ("Variant", *(kind.replace("_", " ").capitalize() for kind in WORK), *totals),
        tuple(rows),
        "Matrix products; a multiply-add is 2. The kinds: MFLOP per token in the forward pass of training, all layers. "
        "Of the experts' slots, useful ones hold a token, padded ones are empty and executed all the same, but for "
        "float32 on a CPU; dropped is what the dropped choices would have cost and is not executed. The backward pass "
        "takes twice that. Training: forward and backward of the whole run. The optimizer's products (Muon) come on "
        "top and are in no picture.",
    )
