"""What must be known to read the figures of a report, each once."""

from collections.abc import Iterator

from switch_lm.pages.numbers import count, plain
from switch_lm.reporting.answer import resolves
from switch_lm.reporting.cohorts import cohort_keys, loose_keys
from switch_lm.reporting.comparisons import Study, assumed_alike
from switch_lm.reporting.controls import LOSS, machines
from switch_lm.reporting.records import DONE, FAILED, NOT_RUN, UNFINISHED
from switch_lm.reporting.variants import RANDOM_DROPS
from switch_lm.stats.contrasts import ENOUGH_SEEDS

DEFINITIONS = (
    "The lowest of all validations is not compared: it is chosen by the same split, so it is too low.",
    "Differences are of least squares on variant and seed. Runs that repeat a seed are averaged.",
    "Seconds are those of training steps alone. Where the learning rate falls to the end, a low loss is reached late.",
    "A dense run equals a Switch in the model's products, the router's apart, only at factor 1.0 or dropless, with "
    "top-1 and no shared expert; in all products, the optimizer's too, if 2% apart at most and only d_ff differs.",
)


def caveats(study: Study) -> tuple[str, ...]:
    """What limits these runs, then what holds of every report."""
    return (*_statistics(study), *_limits(study), *(DEFINITIONS if study.variants else ()))


def _statistics(study: Study) -> Iterator[str]:
    for cohort in study.cohorts:
        pool, name = cohort.pools[LOSS], f" (control `{cohort.control.label}`)" if len(study.cohorts) > 1 else ""
        if len(pool.values) < 2 or max(map(len, pool.values.values())) < 2:
            continue
        if pool.one_way:
            yield f"Seeds do not link all variants{name}: Welch's t compares them, as if seeds had no effect."
        elif pool.least_squares.freedom == 0:
            yield f"Too few runs share seeds{name}: no deviation is known, so no interval."
        elif so_many := resolves(study, cohort):
            apart = f", but for {'; '.join(f'`{variant.label}`' for variant in pool.wider)}" if pool.wider else ""
            deviation = f"{plain(pool.least_squares.deviation, 4)} nats{apart}{name}"
            yield f"The standard deviation across seeds is {deviation}: so many seeds {so_many}."
    if assumed_alike(study.cohorts):
        others = "other " if any(cohort.pools[LOSS].left_out for cohort in study.cohorts) else ""
        start = f"With fewer than {ENOUGH_SEEDS} seeds unequal spreads cannot be detected"
        yield f"{start}: all {others}variants are assumed to scatter alike."
    if loose := loose_keys(study.variants):
        keys = ", ".join(f"`{key}`" for key in loose)
        yield f"Runs that no sweep varied are taken to differ on purpose in {keys}."
    if len(study.cohorts) > 1:
        keys = ", ".join(f"`{key}`" for key in cohort_keys(study.cohorts)) or "keys that no sweep varied"
        yield f"The runs form {len(study.cohorts)} groups that differ in {keys}: nothing is compared between them."
    if any(variant.searched for variant in study.variants):
        yield "The trials of a search were chosen by their results: no interval holds, and none is given."


def _limits(study: Study) -> Iterator[str]:
    if any(variant.random for variant in study.sparse):
        yield "The router `uniform` draws its experts at random: what beats it beats chance (All comparisons)."
    if any(not v.dropless for v in study.sparse) and not any(v.config.get(RANDOM_DROPS) for v in study.sparse):
        start = "No run has `router.random_drop_rate`: the effect of a capacity on the loss cannot be told from that of"
        yield f"{start} dropping tokens at random, which acts as dropout on so small a text."
    single = [variant for variant in study.variants if variant.seeds == 1 and not variant.searched]
    if single and len(single) == len(study.variants):
        yield "Each variant has one seed: no difference is resolved. Several are given by `seed=0,1,2,3,4`."
    elif single:
        yield f"One seed, so no spread: {'; '.join(f'`{variant.label}`' for variant in single)}."
    counts = {status: sum(r.status == status for r in study.records) for status in (DONE, FAILED, UNFINISHED, NOT_RUN)}
    counts["finished without a loss or a configuration"] = counts.pop(DONE) - len(study.used)
    if parts := [f"{number} {status}" for status, number in counts.items() if number]:
        start = (
            f"Of {count(len(study.records), 'run')}, {len(study.used)} are used; {', '.join(parts)}: see What was run."
        )
        yield f"{start} The seeds that are left flatter a variant whose others failed because of a bad loss."
    for variant in study.sparse:
        if (factor := variant.config.get("model.eval_capacity_factor")) is not None:
            yield f"`{variant.label}` validates at factor {factor}: its validation loss includes drops."
    if (ways := len(machines(*study.variants))) > 1:
        yield f"The runs differ in machine, precision, threads or compiling, in {ways} ways: compare no seconds."
    if len({variant.config.get("text") for variant in study.variants}) > 1:
        yield "The runs were validated on different texts: their losses cannot be compared."
