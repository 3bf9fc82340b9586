"""What a report opens with: who wins, by how much and whether that is resolved; four figures; what to try next."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switch_lm.config.plugins import command_line, without_keys
from switch_lm.config.rules import show
from switch_lm.pages.numbers import MISSING, figures, interval, plain
from switch_lm.pages.tiles import Tile, Tiles
from switch_lm.reporting.cohorts import Cohort
from switch_lm.reporting.comparisons import CONTROL, KINDS, Difference, Study, confidences, dropped_of, family_pairs
from switch_lm.reporting.controls import EQUAL, LOSS, SAME_WORK
from switch_lm.reporting.frontier import AXES
from switch_lm.reporting.keys import is_routing
from switch_lm.reporting.records import DONE
from switch_lm.reporting.variants import Variant
from switch_lm.reporting.words import spread
from switch_lm.stats.intervals import POWER
from switch_lm.storage.files import read_json
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
    words = ("won", "lost") if equal else ("lower", "higher")
    numbers = f"{len(won)} {words[0]}, {resolved - len(won)} {words[1]}, {len(members) - resolved} unresolved"
    return f"{text} (of {len(members)} such comparisons, {numbers})" if others else text


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


def tiles(study: Study) -> Tiles:
    """The best, the cheapest, what is dropped, and which difference so many seeds can resolve; nothing without runs."""
    if not (pool := _pool(study)):
        return Tiles(())
    best, seeds = pool[0], sorted({variant.seeds for variant in pool})
    drops = {v: share.mean for v in pool if v.drops and not v.dropless and (share := dropped_of(v))}
    most = max(drops, key=lambda variant: drops[variant], default=None)
    dropped = f"`{most.label}` drops most in training" if most else "no run limits how many tokens may choose an expert"
    dropped = "no choice was left without a slot" if most and not drops[most] else dropped
    numbers = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    size = resolves(study, study.cohorts[0]) if study.cohorts and len(pool) > 1 else ""
    return Tiles((
        Tile("Best", f"{plain(best.mean(LOSS), 4)} nats", f"`{best.label}` has the lowest loss{_runner_up(study)}"),
        _cheapest(pool),
        Tile("Dropped", plain(drops[most], 1, 100.0, "%") if most else MISSING, dropped),
        Tile("Seeds", numbers, size or "no difference is resolved"),
    ))  # fmt: skip


def _cheapest(pool: Sequence[Variant]) -> Tile:
    """By computation in training, else by seconds; of those that are equal, the one with the lowest loss."""
    for axis in AXES[:2]:
        if places := axis.places(pool):
            most = min(cost for _, cost, _ in places) * (1.0 + SAME_WORK)
            (variant, cost, loss), *others = [place for place in places if place[1] <= most]
            what, _, unit = axis.heading.rstrip(")").partition(" (")
            least, above = f"least {what.lower()}", loss.mean - _loss(pool[0])
            of = f"of {len(others) + 1} variants within {SAME_WORK * 100:.0f}% of the {least}, " if others else ""
            end = "the best of all" if variant is pool[0] else f"{plain(above, 4)} above the best"
            note = f"{of}`{variant.label}` has the {'lowest loss' if others else least}, {end}"
            return Tile("Cheapest", f"{figures(cost)} {unit}", note)
    return Tile("Cheapest", MISSING, "no run says what it computed")


def _runner_up(study: Study) -> str:
    """How far behind the second is, by an interval of this comparison alone; nothing where it is not compared."""
    pool, first = study.cohorts[0].pools[LOSS] if study.cohorts else None, _pool(study)
    if pool is None or len(first) < 2:
        return ""
    best, second, *_ = first
    return f"; `{second.label}` follows, {spread(pool.difference((second, best)), 4)} higher (not corrected)"


def resolves(study: Study, cohort: Cohort) -> str:
    """Which difference from the control so many seeds can detect; nothing where no spread is known."""
    pool, confidence = cohort.pools[LOSS], confidences(study)[cohort]
    known = not pool.one_way and pool.least_squares.freedom > 0
    if not known or (smallest := pool.detectable(family_pairs(cohort), confidence)) is None:
        return ""
    average = ", on average," if pool.wider else ""
    size = f"a {plain(smallest, 3)}-nat difference from `{cohort.control.label}`"
    return f"can detect {size}{average} with {POWER * 100:.0f}% power"


def next_commands(study: Study, differences: Sequence[Difference]) -> tuple[str, ...]:
    """Two at most, each to be pasted as it is: what was not run, missing controls, more seeds, a look at the best."""
    missing_first = sorted(study.records, key=lambda run: run.status == DONE)
    plans = [(run.sweep, plan) for run in missing_first if run.sweep and (plan := read_json(run.sweep / SWEEP))]
    commands = _more_runs(study, differences, *plans[0]) if plans and plans[0][1].get("command") else []
    for run in [str(run.folder) for v in _pool(study) if not v.dense for run in v.runs if run.folder][:1]:
        capacity = ("evaluate", "what capacity costs it", "--capacity-factor", "0.5", "1", "2", "none")
        looks = [("inspect", "what its experts do"), ("check", "what its routing leaks, drops and learns")]
        for name, why, *more in [capacity, *looks][len(study.variants) > 1 :]:
            commands.append(f"{command_line(f'switch_lm.{name}', '--run', run, *more)}  # {why}")
    return tuple(commands[:2])


def _more_runs(study: Study, differences: Sequence[Difference], sweep: Path, plan: Mapping[str, Any]) -> list[str]:
    """More seeds are those of all jobs, of earlier starts too; controls keep what has nothing to do with routing."""
    words, varied = shlex.split(str(plan["command"]))[2:], plan.get("varied", ())  # without `python -m`
    routing = {key for key in varied if is_routing(key)} | {"name", "variant", "router", "balance"}
    controls = {"dense": "no experts"} if study.sparse and not study.dense else {}
    controls |= {"uniform": "a random router"} if study.sparse and not any(v.random for v in study.sparse) else {}
    jobs = [run.overrides for run in study.records if run.sweep == sweep and plan.get("jobs")]  # none of a search
    values = {key: dict.fromkeys(show(job[key]) for job in jobs if key in job) for key in varied}
    every = {key: ",".join(own) for key, own in values.items() if own and "," not in "".join(own)}
    every["seed"] = ",".join(map(str, range(max(SEEDS, 2 * len({run.seed for run in study.used})))))
    more = [*without_keys(words, every), *(f"{key}={value}" for key, value in every.items())]
    unresolved = any(d.family == CONTROL and not d.resolved for d in differences)
    cases = (
        (any(run.status != DONE for run in study.records), words, "runs what is missing"),
        (controls, [*without_keys(words, routing), f"variant={','.join(controls)}"], " and ".join(controls.values())),
        (unresolved, more, "more seeds resolve more"),
    )
    return [f"{command_line(*line)}  # {why}" for holds, line, why in cases if holds]
