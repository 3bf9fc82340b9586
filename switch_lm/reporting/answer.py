"""What a report opens with: who wins, by how much and whether that is resolved; four figures; what to try next."""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from switch_lm.config.plugins import command_line
from switch_lm.pages.numbers import MISSING, figures, interval, plain
from switch_lm.pages.tiles import Tile, Tiles
from switch_lm.reporting.cohorts import Cohort
from switch_lm.reporting.comparisons import CONTROL, KINDS, Difference, Study, confidences, dropped_of, family_pairs
from switch_lm.reporting.controls import EQUAL, LOSS, SAME_WORK
from switch_lm.reporting.frontier import AXES
from switch_lm.reporting.records import DONE, read_json
from switch_lm.reporting.variants import Variant
from switch_lm.reporting.words import spread
from switch_lm.stats.intervals import POWER
from switch_lm.storage.run_folder import SWEEP

MOST_CONTROLS, SEEDS = 2, 5  # that are named in the verdict; that a sweep should have


def verdict(study: Study, differences: Sequence[Difference]) -> str:
    """One sentence. It rests on the comparisons with the controls alone; of several variants it names the best."""
    if not study.variants:
        return "No run is finished: there is nothing to compare yet."
    control = [d for d in differences if d.family == CONTROL]
    equal = [d for d in control if d.kind in EQUAL]
    groups: dict[tuple[Variant, str], list[Difference]] = {}
    for one in equal or [d for d in control if d.kind in KINDS or d.ours.dense == d.theirs.dense]:
        groups.setdefault((one.theirs, one.kind if one.kind in KINDS else ""), []).append(one)
    parts = [_against(study, members, kind) for (_, kind), members in groups.items()] or [_lowest(study)]
    parts[MOST_CONTROLS:] = ["All comparisons has the other controls"] * (len(parts) > MOST_CONTROLS)
    return "; ".join(parts if equal else [*parts, _without_control(study)]) + "."


def _against(study: Study, members: Sequence[Difference], kind: str) -> str:
    """The best of all variants that have one control, and how many of the others do what."""
    won = [d for d in members if d.resolved and d.estimate is not None and d.estimate.mean < 0.0]
    best = min(won or members, key=lambda d: d.estimate.mean if d.estimate else math.inf)
    origin = next((f", {c.origin}" for c in study.cohorts if c.control is best.theirs and c.origin), "")
    equal, others, resolved = kind in EQUAL, len(members) - 1, sum(d.resolved for d in members)
    verb = ("beats" if won else "loses to") if equal and best.resolved else "against"
    text = f"`{best.ours.label}` {verb} `{best.theirs.label}`{f' of {kind}' if kind else origin}: {_outcome(best)}"
    words = ("wins", "losses") if equal else ("lower", "higher")
    numbers = f"{words[0]}: {len(won)}, {words[1]}: {resolved - len(won)}, not resolved: {len(members) - resolved}"
    return f"{text} (all {len(members)}: {numbers})" if others else text


def _outcome(difference: Difference) -> str:
    if difference.compared is None:
        return "not compared"
    mean, ends = difference.compared.estimate.mean, interval(difference.compared.interval, 4)
    size = f"loss {'lower' if mean < 0.0 else 'higher'} by {plain(abs(mean), 4)} nats"
    size = "loss equal" if math.isclose(mean, 0.0, abs_tol=1e-9) else size  # least squares rounds
    return f"{size}{f' ({ends})' if ends != MISSING else ''}, {difference.verdict}"


def _lowest(study: Study) -> str:
    best = _pool(study)[0]
    text = f"The {'lowest ' * (len(study.variants) > 1)}loss at the last step, of `{best.label}`, is "
    return text + spread(best.estimate(LOSS), 4) + ", chosen from the trials of a search, so too low" * best.searched


def _without_control(study: Study) -> str:
    """Why nothing is said of Switch against dense."""
    if study.sparse and study.dense:
        return "no dense run here is a control of equal computation, so whether Switch beats dense cannot be said"
    return f"there is no {'sparse' if study.dense else 'dense'} run here, so nothing is said of Switch against dense"


def _pool(study: Study) -> Sequence[Variant]:
    """Whose losses can be compared, the lowest first: the first group of runs, if there is any."""
    return sorted(study.cohorts[0].variants if study.cohorts else study.variants, key=_loss)


def _loss(variant: Variant) -> float:
    return variant.mean(LOSS) or math.inf


# --- Four figures


def tiles(study: Study) -> Tiles:
    """The best, the cheapest, what is dropped, and which difference so many seeds can resolve; nothing without runs."""
    if not (pool := _pool(study)):
        return Tiles(())
    best, seeds = pool[0], sorted({variant.seeds for variant in pool})
    drops = {v: share.mean for v in pool if not (v.dense or v.dropless) and (share := dropped_of(v))}
    most = max(drops, key=lambda variant: drops[variant], default=None)
    dropped = f"`{most.label}` drops most in training" if most else "no run limits its experts"
    dropped = "no choice was left without a slot" if most and not drops[most] else dropped
    numbers = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    size = resolves(study, study.cohorts[0]) if study.cohorts and len(pool) > 1 else ""
    return Tiles((
        Tile("Best", f"{plain(best.mean(LOSS), 4)} nats", f"`{best.label}` has the lowest loss at the last step"),
        _cheapest(pool),
        Tile("Dropped", plain(drops[most], 1, 100.0, " %") if most else MISSING, dropped),
        Tile("Seeds", numbers, size or "no difference is resolved"),
    ))  # fmt: skip


def _cheapest(pool: Sequence[Variant]) -> Tile:
    """By computation in training, else by seconds; of those that are equal, the one with the lowest loss."""
    for axis in AXES[:2]:
        if places := axis.places(pool):
            least = min(cost for _, cost, _ in places) * (1.0 + SAME_WORK)
            variant, cost, loss = next(place for place in places if place[1] <= least)
            what, _, unit = axis.heading.rstrip(")").partition(" (")
            above = f"its loss is {plain(loss.mean - _loss(pool[0]), 4)} above the best"
            note = f"`{variant.label}` has the least {what.lower()}, {'too' if variant is pool[0] else above}"
            return Tile("Cheapest", f"{figures(cost)} {unit}", note)
    return Tile("Cheapest", MISSING, "no run says what it computed")


def resolves(study: Study, cohort: Cohort) -> str:
    """Which difference from the control so many seeds resolve; nothing where no spread is known."""
    pool, confidence = cohort.pools[LOSS], confidences(study)[cohort]
    known = not pool.one_way and pool.least_squares.freedom > 0
    if not known or (smallest := pool.detectable(family_pairs(cohort), confidence)) is None:
        return ""
    average = ", on average," if pool.wider else ""
    return f"resolve {plain(smallest, 3)} nats from the control{average} in {POWER * 100:.0f} % of repeats"


# --- What to try next


def next_commands(study: Study, differences: Sequence[Difference]) -> tuple[str, ...]:
    """Two at most, each to be pasted as it is: what was not run, missing controls, more seeds, a look at the best."""
    missing_first = sorted(study.records, key=lambda run: run.status == DONE)
    plans = [plan for run in missing_first if run.sweep and (plan := read_json(run.sweep / SWEEP))]
    commands = _more_runs(study, differences, plans[0]) if plans and plans[0].get("command") else []
    for run in [str(run.folder) for v in _pool(study) if not v.dense for run in v.runs if run.folder][:1]:
        capacity = ("evaluate", "what capacity costs it", "--capacity-factor", "0.5", "1", "2", "none")
        looks = [("inspect", "what its experts do"), ("check", "what its routing leaks, drops and learns")]
        for name, why, *more in [capacity, *looks][len(study.variants) > 1 :]:
            commands.append(f"{command_line(f'switch_lm.{name}', '--run', run, *more)}  # {why}")
    return tuple(commands[:2])


def _more_runs(study: Study, differences: Sequence[Difference], plan: Mapping[str, Any]) -> list[str]:
    words = shlex.split(str(plan["command"]))[2:]  # without `python -m`
    varied = {*plan.get("varied", ()), "name", "variant", "router", "balance"} - {"seed"}
    controls = ["dense"] if study.sparse and not study.dense else []
    controls += ["uniform"] if study.sparse and not any(v.random for v in study.sparse) else []
    seeds = ",".join(map(str, range(max(SEEDS, 2 * len({run.seed for run in study.used})))))
    unresolved = any(d.family == CONTROL and not d.resolved for d in differences)
    cases = (
        (any(run.status != DONE for run in study.records), words, "runs what is missing"),
        (
            controls,
            [*_without(words, varied), f"variant={','.join(controls)}"],
            "controls: no experts, or a random one",
        ),
        (unresolved, [*_without(words, {"seed"}), f"seed={seeds}"], "more seeds resolve more"),
    )
    return [f"{command_line(*line)}  # {why}" for holds, line, why in cases if holds]


def _without(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """The words of a command line that set none of these keys."""
    return [word for word in words if word.partition("=")[0].lstrip("+~") not in keys]
