"""The tables of a report: Table 1 of the paper, comparisons, balance, the frontier, computation, what was run."""

import math
from collections.abc import Mapping, Sequence

from switch_lm.config.rules import show
from switch_lm.pages.document import Bullets, Cell, Code, Part, Table
from switch_lm.reporting.comparisons import (
    CONTROL,
    FAMILIES,
    LEFT_OUT_MARK,
    SECONDS,
    WIDE_MARK,
    Difference,
    Study,
)
from switch_lm.reporting.controls import EQUAL_COMPUTATION, EQUAL_TOTAL, LOSS, MACHINE, TRAIN_CAPACITY, TRAINING
from switch_lm.reporting.frontier import AXES, MEGA, PER_TOKEN, TERA
from switch_lm.reporting.records import DONE, TAIL_DROPPED, Crossing, Record, read_json
from switch_lm.reporting.times import RUNG
from switch_lm.reporting.variants import Variant, short
from switch_lm.reporting.words import MISSING, count, figures, interval, missed, percents, plain, ratios, spread
from switch_lm.stats.contrasts import LEFT_OUT, OWN_SPREAD
from switch_lm.stats.intervals import Estimate
from switch_lm.storage.run_folder import SWEEP

WORK = ("useful", "padded", "dropped", "router", "feed_forward", "attention", "head", "executed")
DROPS = (TAIL_DROPPED, "dropped_whole_run", "train_capacity_dropped")
BALANCE = (
    "Model", "Capacity factor", "Alpha", "Dropped at the end", "Dropped in the whole run", "Dropped in validation",
    "Busiest expert / mean", "Router entropy (nats)", "Loss", "Loss at capacity",
)  # fmt: skip
KINDS = {EQUAL_COMPUTATION: "equal: the model's products", EQUAL_TOTAL: "equal: all products"}
DEFINITIONS = (
    "The loss is the language loss alone, in nats per character, over the whole validation split, each prediction "
    "once, at the last step. The lowest of all validations is not compared: it is chosen by the same split, so "
    "it is too low.",
    "± is half of a 95 % interval by Student's t, of this figure alone. Differences of losses: least squares on "
    "variant and seed, over runs that differ in nothing else than what was varied. Runs that repeat a seed of the same "
    "variant are averaged: they are no further sample. A run of unknown seed stands alone.",
    "A threshold counts as reached on the straight line between two validations, the first time. With a learning rate "
    "that falls to the end of a run, all runs reach a loss near the final one late: see the seconds of all steps. "
    "The line lies above a curve that flattens, so times are a little long, by less than the time between validations.",
    "Seconds are those of training steps alone, without validation, samples and compiling.",
    "A dense run is a control of equal computation only for a Switch at factor 1.0 or dropless, with top-1, no shared "
    "expert, and equal sizes and training. The router's own products are not in dense and come on top.",
)


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
            _crossed(variant, crossings, "seconds", 1),
            _mean(variant.estimate("tokens_per_second"), 0),
            Cell(str(variant.seeds)),
        )
        for variant in study.variants
    ]
    headings = ("Model", "Capacity factor", after, f"Steps {to}", f"Seconds {to}", "Tokens per second", "Seeds")
    return Table("Model against capacity factor, as in Table 1 of the paper", headings, tuple(rows), note)


def _mean(estimate: Estimate | None, digits: int) -> Cell:
    return Cell(spread(estimate, digits), estimate.mean if estimate else None)


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
        ("First", "Second", "What", "Difference ±", "Corrected interval", "Resolved", "Family", "Kind"),
        tuple(map(_comparison, differences)),
        f"First less second: below 0 the first is lower. {_families(differences)} Resolved: the corrected 95 % "
        "interval excludes 0 (1 for a ratio); ±, and an interval in brackets, are of this comparison alone. "
        f"{_exceptions(differences)}Kind: what is equal, or the keys in which they differ; in brackets how many more "
        "products the first takes in training: the model's, and all with the optimizer's. Nothing follows from unequal "
        "computation about equal.",
    )


def _families(differences: Sequence[Difference]) -> str:
    """How many, and how each is corrected; each group of runs has a family of comparisons with its control."""
    methods = dict(zip(FAMILIES, ("all at once by the multivariate t", "by Holm", "by Holm"), strict=True))
    numbers = {family: sum(d.family == family for d in differences) for family in FAMILIES}
    texts = [f"{family} ({number}, {methods[family]})" for family, number in numbers.items() if number]
    families = len({(d.family, id(d.cohort) if d.family == CONTROL else 0) for d in differences})
    start = f"{count(len(differences), 'comparison')} in {families} {'family' if families == 1 else 'families'}"
    return f"{start} fixed beforehand: {', '.join(texts)}. A family errs in 5 % of sweeps at most."


def _exceptions(differences: Sequence[Difference]) -> str:
    """What the marks mean that are there."""
    marks = {mark for difference in differences for mark in difference.marks}
    verdicts = {difference.verdict for difference in differences}
    wide = "a spread over {:g} times the others', so compared by its own seeds"
    rules = (
        (WIDE_MARK in marks, f"{WIDE_MARK}: {wide.format(OWN_SPREAD)}. "),
        (LEFT_OUT_MARK in marks, f"{LEFT_OUT_MARK}: {wide.format(LEFT_OUT)} and left out of the common deviation. "),
        ("no spread" in verdicts, "No spread: all differences are equal, which is no deviation of 0. "),
        ("not compared" in verdicts, "Not compared: no seed in common, no curve, or different machines. "),
        (
            any(d.figure == SECONDS for d in differences),
            f"Time: a ratio, paired by seed, to the lowest multiple of {RUNG} that at least half of the seeds of both "
            "reached; a seed that did not counts as the slowest. ",
        ),
    )
    return "".join(rule for holds, rule in rules if holds)


def _comparison(difference: Difference) -> tuple[Cell, ...]:
    result, what = difference.estimate, {LOSS: "loss", TRAIN_CAPACITY: "loss at capacity", SECONDS: SECONDS}
    more, corrected = percents([difference], ""), difference.compared.interval if difference.compared else None
    kind = KINDS.get(difference.kind) or ", ".join(map(short, difference.kind.split(", ")))
    if difference.time is not None:
        text = f"time to {difference.time.loss:g}{missed(difference)}"
        mean = f"{plain(math.exp(difference.time.estimate.mean), 2)} times"
        alone = difference.time.estimate.interval()
        size, ends = f"{mean} ({ratios(alone)})" if alone else mean, ratios(corrected)
    else:
        text, size, ends = what[difference.figure], spread(result, 4), interval(corrected, 4)
    return (
        Cell(f"{difference.ours.label}{difference.marks[0]}"),
        Cell(f"{difference.theirs.label}{difference.marks[1]}"),
        Cell(text),
        Cell(size, result.mean if result else None),
        Cell(ends, corrected[0] if corrected else None),
        Cell(difference.verdict),
        Cell(difference.family),
        Cell(f"{kind} ({more})" if more else kind),
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
        "intervals overlap the mark is not resolved.",
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
        "Of the experts' slots, useful ones hold a token, padded ones are empty and executed all the same; dropped is "
        "what the dropped choices would have cost and is not executed. The backward pass takes twice that. Training: "
        "forward and backward of the whole run. The optimizer's products (Muon) come on top and are in no picture.",
    )


# --- What was run


def what_was_run(study: Study) -> tuple[Part, ...]:
    """Commands, facts, definitions, and the runs that have no figures, or not all."""
    sweeps = sorted({record.sweep for record in study.records if record.sweep is not None})
    plans = [plan for sweep in sweeps if (plan := read_json(sweep / SWEEP)) is not None]
    commands = [str(plan["command"]) for plan in plans if plan.get("command")]
    parts: list[Part] = [Code("\n".join(commands))] if commands else []
    parts.append(Bullets((*_facts(study, plans), *DEFINITIONS)))
    unfinished = [(run, run.reason) for run in study.records if run.status != DONE]
    faulty = [(run, "; ".join(run.faults)) for run in study.records if run.faults]
    for caption, heading, runs in (
        ("Runs without a result", "Reason", unfinished),
        ("Runs of which not all is known", "What is missing", faulty),
    ):
        rows = tuple((Cell(_plain(run.name)), Cell(run.status), Cell(_plain(text))) for run, text in runs)
        parts += [Table(caption, ("Run", "Status", heading), rows)] if rows else []
    return tuple(parts)


def _facts(study: Study, plans: Sequence[dict[str, object]]) -> list[str]:
    statuses = [record.status for record in study.records]
    counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    facts = [f"{count(len(statuses), 'run')}: {counted}; {count(len(study.variants), 'variant')}."]
    used = study.used
    for words, values in (
        ("Machine", {_machine(run) for run in used}),
        ("Versions", {_versions(run) for run in used}),
        ("Commit", {str(run.result.get("commit") or "") for run in used}),
        ("Text (sha256)", {str(run.result.get("corpus_sha256") or "") for run in used}),
        ("Started", {str(plan.get("started") or "") for plan in plans}),
    ):
        shown = sorted(_plain(value) for value in values if value)
        facts.append(f"{words}: {'; '.join(shown) if shown else 'not recorded'}.")
    if any(isinstance(n := plan.get("side_by_side"), int) and n > 1 for plan in plans):
        facts.append("Jobs ran side by side: their seconds are longer than those of a run alone.")
    if differing := differing_keys(study):
        facts.append(f"Keys in which the runs differ, but for the seed: {', '.join(f'`{key}`' for key in differing)}.")
    return facts


def differing_keys(study: Study) -> list[str]:
    """The keys in which the runs that have a configuration differ, but for seed and name."""
    configs = [run.config for run in study.records if run.folder is not None and run.config]
    keys = sorted({key for config in configs for key in config} - {"seed", "name"})
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _machine(run: Record) -> str:
    values = {key: run.result.get(f"hardware.{key}") for key in MACHINE}
    words = [str(values[key]) for key in ("device", "name", "precision") if values[key] is not None]
    words += [f"{values['threads']} threads"] if values["threads"] is not None else []
    words += ["compiled" if values["compile"] else "not compiled"] if isinstance(values["compile"], bool) else []
    return ", ".join(words)


def _versions(run: Record) -> str:
    versions = ((key.partition("."), value) for key, value in run.result.items())
    return ", ".join(f"{name} {show(value)}" for (start, _, name), value in versions if start == "versions")


def _plain(text: str) -> str:
    """Names and messages of others hold no markup of ours."""
    return text.replace("`", "'")
