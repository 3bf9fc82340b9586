"""The tables of a report: Table 1 of the paper, comparisons, balance, the frontier, computation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from switch_lm.config.families import has_balance_loss
from switch_lm.config.rules import show
from switch_lm.pages.document import Cell, Table
from switch_lm.pages.numbers import MISSING, count, figures, interval, plain, ratios
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
from switch_lm.reporting.controls import EQUAL_COMPUTATION, EQUAL_TOTAL, LOSS, TRAIN_CAPACITY, machines, more_work
from switch_lm.reporting.frontier import AXES, MEGA, TERA
from switch_lm.reporting.records import TAIL_DROPPED, Crossing
from switch_lm.reporting.times import RUNG, TimeRatio
from switch_lm.reporting.variants import Variant, short
from switch_lm.reporting.words import spread
from switch_lm.stats.contrasts import ENOUGH_SEEDS, LEFT_OUT, LEFT_OUT_BY_CHANCE, OF_FEW, WIDER_BY_CHANCE
from switch_lm.stats.intervals import Estimate

WORK = ("useful", "padded", "dropped", "router", "feed_forward", "attention", "head", "executed")
DROPS = (TAIL_DROPPED, "dropped_whole_run", "train_capacity_dropped")
BALANCE = (
    "Model", "Capacity factor", "Alpha", "Dropped at the end", "Dropped in the whole run", "Dropped in validation",
    "Busiest expert / mean", "Router entropy (nats)", "Loss at capacity",
)  # fmt: skip
KINDS = {EQUAL_COMPUTATION: "equal in the model's products", EQUAL_TOTAL: "equal in all products"}


def table_1(study: Study, differences: Sequence[Difference]) -> Table:
    """Table 1 of the paper: model, capacity factor, quality, time to a threshold, speed."""
    steps = {int(value) for variant in study.variants for value in variant.by_seed("steps").values()}
    after = f"Loss after {steps.pop():,} steps" if len(steps) == 1 else "Loss at the last step"
    to = f"to a loss of {round(study.threshold.loss, 4):g}" if study.threshold else "to the threshold"
    note = "Mean ± half of its 95% interval. Loss: nats per character on the whole validation split, nothing dropped."
    if study.threshold:
        note += f" Threshold: {study.threshold.origin}; on the line between two validations, unknown before the first."
    rows = [
        (
            Cell(variant.model),
            _capacity(variant),
            _mean(variant.estimate(LOSS), 4),
            _against(variant, study, differences),
            _crossed(variant, crossings := study.crossings(variant), "steps", 0),
            _timed(study, variant, _crossed(variant, crossings, "seconds", 1)),
            _timed(study, variant, _mean(variant.estimate("tokens_per_second"), 0)),
            Cell(str(variant.seeds)),
        )
        for variant in study.variants
    ]
    controls = {cohort.control.label for cohort in study.cohorts}
    less = f"Difference from {controls.pop() if len(controls) == 1 else 'its control'}"
    headings = ("Model", "Capacity factor", after, less, f"Steps {to}", f"Seconds {to}", "Tokens per second", "Seeds")
    return Table(
        "Model against capacity factor, as in Table 1 of the Switch Transformers paper", headings, tuple(rows), note
    )


def _against(variant: Variant, study: Study, differences: Sequence[Difference]) -> Cell:
    """The comparison with the control, or else with one of its own, of which All comparisons has the interval."""
    controls = [cohort.control for cohort in study.cohorts]
    own = [d for d in differences if d.ours is variant and d.family == CONTROL and d.estimate]
    own.sort(key=lambda d: d.theirs not in controls)
    if not own or own[0].estimate is None:
        return Cell(MISSING)
    mean, other = own[0].estimate.mean, "" if own[0].theirs in controls else f" (less `{own[0].theirs.label}`)"
    return Cell(f"{round(mean, 4) + 0.0:+.4f}, {own[0].verdict}{other}", mean)


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
    """Mean ± of the seeds, or how many did not reach the threshold; nothing if one reached it before a validation."""
    hits = [crossing for crossing in crossings.values() if crossing is not None]
    if len(hits) < len(crossings):
        return Cell(f"{len(crossings) - len(hits)} of {len(crossings)} did not reach it", float("inf"))
    time = variant.over_seeds([float(value) for hit in hits if (value := getattr(hit, key)) is not None])
    known = time is not None and not any(hit.at_most for hit in hits)
    return Cell(spread(time, digits), time.mean) if known and time else Cell(MISSING)


def comparison_table(differences: Sequence[Difference]) -> Table:
    headings = ("First", "Second", "What", "Difference ±", "Corrected interval", "Resolved", "Kind")
    note = (
        f"First less second: below 0 the first is lower. {_families(differences)}Resolved: the corrected 95% interval "
        "excludes 0 (1 for a ratio); ±, and the interval beside a ratio, are of this comparison alone. "
        f"{_exceptions(differences)}Kind: the family, then what is equal, or the keys that differ; in brackets how "
        "many more products the first takes in training: the model's, and all with the optimizer's."
    )
    return Table("All comparisons", headings, tuple(map(_comparison, differences)), note)


def _families(differences: Sequence[Difference]) -> str:
    """How many have an interval, and how each is corrected."""
    known = [d for d in differences if d.compared is not None and d.compared.interval is not None]
    numbers = {family: number for family in FAMILIES if (number := sum(d.family == family for d in known))}
    texts = [f"{name} ({n}, by {'the multivariate t' if name == CONTROL else 'Holm'})" for name, n in numbers.items()]
    families = "1 family" if len(numbers) == 1 else f"{len(numbers)} families"
    alike = ", if all variants scatter alike" if assumed_alike({d.cohort for d in known}) else ""
    holm = "Holm's intervals decide; together they do not hold in 95%. " if numbers.keys() - {CONTROL} else ""
    start = f"{count(len(known), 'comparison')} with an interval, in {families} fixed beforehand: {', '.join(texts)}."
    return f"{start} A family errs in 5% of sweeps at most{alike}. {holm}" if known else ""


def _exceptions(differences: Sequence[Difference]) -> str:
    """What the marks and verdicts mean that are there."""
    verdicts = {difference.verdict for difference in differences}
    marks = {mark for difference in differences for mark in difference.marks}
    times = [difference.time for difference in differences if difference.figure == SECONDS]
    missed = (time is not None and time.missed for time in times)
    rules = {
        f"{WIDE_MARK} scatters more than the others (F test, p < {WIDER_BY_CHANCE}, with {ENOUGH_SEEDS} seeds "
        f"{OF_FEW}): its own deviation is used. ": WIDE_MARK in marks,
        f"{LEFT_OUT_MARK} scatters over {LEFT_OUT:g} times as much as the others, so much by chance in less than "
        f"{LEFT_OUT_BY_CHANCE * 100:.0f}% of sweeps: not in the common deviation. ": LEFT_OUT_MARK in marks,
        "No spread: all agree, or too few runs share seeds; no deviation is known. ": "no spread" in verdicts,
        "Not compared: no seed in common, no curve, or different machines. ": "not compared" in verdicts,
        f"Time: a ratio, paired by seed, to the lowest multiple of {RUNG} that at least half of the seeds of both "
        "reached. ": bool(times),
        "A seed that did not counts as the slowest: the ratio is a bound, without an interval. ": any(missed),
    }
    return "".join(rule for rule, holds in rules.items() if holds)


def _comparison(difference: Difference) -> tuple[Cell, ...]:
    corrected = difference.compared.interval if difference.compared else None
    result, time, what = difference.estimate, difference.time, {LOSS: "loss", TRAIN_CAPACITY: "loss at capacity"}
    more = more_work(difference.ours, difference.theirs)
    kind = KINDS.get(difference.kind) or ", ".join(map(short, difference.kind.split(", ")))
    if time is not None:
        text, alone = f"time ratio to {time.loss:g}{_missed(difference, time)}", ratios(time.estimate.interval())
        mean = f"{time.bound}{math.exp(time.estimate.mean):,.2f}{f', {alone}' if alone != MISSING else ''}"
        size, ends = MISSING if time.bound is None else mean, ratios(corrected)
    else:
        text, size = what.get(difference.figure, difference.figure), spread(result, 4)
        ends = interval(corrected, 4)
    return (
        Cell(f"{difference.ours.label}{difference.marks[0]}"),
        Cell(f"{difference.theirs.label}{difference.marks[1]}"),
        Cell(text),
        Cell(size, result.mean if result else None),
        Cell(ends, corrected[0] if corrected else None),
        Cell(difference.verdict),
        Cell(f"{difference.family}: {kind}{f' ({more})' if more else ''}"),
    )


def _missed(difference: Difference, time: TimeRatio) -> str:
    """How many seeds did not reach the loss to which times are counted."""
    sides = ((difference.ours, time.ours_missed), (difference.theirs, time.theirs_missed))
    texts = [f"{number} of {time.estimate.count} of `{v.label}` did not reach it" for v, number in sides if number]
    return f"; {', '.join(texts)}" if texts else ""


def balance_table(study: Study) -> Table:
    rows = [
        (
            Cell(variant.model),
            _capacity(variant),
            Cell(show(variant.config["alpha"]) if has_balance_loss(variant.config) else MISSING),
            *(Cell(plain(variant.mean(key) if variant.drops else None, 1, 100.0, "%")) for key in DROPS),
            Cell(plain(variant.mean("load_max_over_mean"), 2)),
            Cell(plain(variant.mean("router_entropy"), 3)),
            _mean(variant.estimate(TRAIN_CAPACITY), 4),
        )
        for variant in study.sparse
    ]
    note = (
        "Means over seeds. Dropped: share of choices without a slot, over the last fifth of the planned steps, in the "
        "whole run, and in validation at the training capacity, of which the last column has the loss; none where "
        "experts choose. Busiest expert: of the worst layer, over the validation split. Entropy: mean over layers."
    )
    return Table("Drops and load balance", BALANCE, tuple(rows), note)


def frontier_table(study: Study) -> Table:
    """Every axis of the frontier as a column; a star where no other variant is at least as good in both."""
    fronts = {axis: axis.front(study.variants) for axis in AXES}
    several, rows = " No mark for times: these are of several machines." * study.several_machines, []
    for variant in study.variants:
        costs = [(axis.cost(variant), " *" if variant.label in front else "") for axis, front in fronts.items()]
        rows.append((Cell(variant.label), *(Cell(figures(cost) + star, cost) for cost, star in costs)))
    note = (
        "Means over seeds; * marks the Pareto set by means: no other variant is at least as low in this cost and in "
        "the loss (the first three: dropless; the others: at the training capacity), and lower in one. Where intervals "
        f"overlap the mark is not resolved.{several}"
    )
    return Table("What the loss costs", ("Variant", *(axis.heading for axis in AXES)), tuple(rows), note)


def computation_table(study: Study) -> Table:
    rows = [
        (
            Cell(variant.label),
            *(Cell(plain(variant.mean(f"computation.forward_per_token.{kind}"), 3, MEGA)) for kind in WORK),
            Cell(figures(variant.mean("computation.optimizer"), TERA)),
            Cell(figures(variant.mean("active_parameters"), MEGA)),
        )
        for variant in study.variants
    ]
    note = (
        "Matrix products; a multiply-add is 2. The kinds: MFLOP per token in the forward pass of training; the "
        "backward pass takes twice that. Useful slots hold a token; padded ones are empty, yet executed, but for "
        "float32 on a CPU; dropped is what dropped choices would have cost, and is not executed. The optimizer's "
        "products (Muon) come on top of those of training, and are in no picture."
    )
    kinds = (kind.replace("_", " ").capitalize() for kind in WORK)
    headings = ("Variant", *kinds, "Optimizer (TFLOP)", "Active parameters (millions)")
    return Table("Where the computation goes", headings, tuple(rows), note)
