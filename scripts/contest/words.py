"""The sentences of the league's report: the answer, the default, how to read the tables, how it was played."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from contest import plan
from contest.plan import DENSE, FROZEN, HASH, QUANTILE, SWITCH, TOP2, UNIFORM, Entry
from contest.standing import CLASS_WIDTH, Pairs, Standing, reversed_
from switch_lm.pages.document import Bullets, Code, Part
from switch_lm.pages.numbers import MISSING, interval, plain
from switch_lm.stats.corrections import Compared
from switch_lm.stats.intervals import POWER

CONTROLS = (FROZEN, HASH, UNIFORM)  # fixed, fixed and random
HEADLINE = (*((SWITCH, one) for one in CONTROLS), (QUANTILE, FROZEN))
REFERENCES = {1: (SWITCH, FROZEN, HASH, DENSE), 2: (TOP2, plan.DENSE2)}


def answer(now: Standing, first: Pairs) -> str:
    """The first sentence."""
    compared = {f"`{one.label}`": first[SWITCH.variant, one.variant] for one in CONTROLS}
    won = [_by(name, reversed_(c)) for name, c in compared.items() if c.resolved and c.estimate.mean < 0.0]
    lost = [_by(name, c) for name, c in compared.items() if c.resolved and c.estimate.mean > 0.0]
    even = [f"{name} ({difference(c)} nats)" for name, c in compared.items() if not c.resolved]
    groups = {"has a lower loss than": won, "has a higher loss than": lost, "is not resolved from": even}
    parts = [f"{words} {', '.join(texts)}" for words, texts in groups.items() if texts]
    size = f"{now.mean('active_parameters', DENSE.variant) or 0.0:,.0f} active parameters, {now.steps:,} steps"
    verdict = "Yes" if len(won) == len(compared) else "In part" if won else "No" if lost else "Not shown"
    return f"{verdict}: at this scale ({size} on Tiny Shakespeare) learned routing, `switch`, {'; it '.join(parts)}."


def _by(name: str, one: Compared) -> str:
    return f"{name} by {one.estimate.mean:.4f} nats ({interval(one.interval, 4)})"


def difference(one: Compared) -> str:
    """With its interval, and a star if that excludes 0."""
    return f"{one.estimate.mean:+.4f}, {interval(one.interval, 4)}{' *' * one.resolved}"


def resolves(now: Standing, first: Pairs) -> str:
    """What the seeds can tell, and what the four are."""
    seeds = now.loss(SWITCH.variant).count
    size = now.pool.detectable([pair for pair in first if pair[0] == SWITCH.variant])
    return (
        f"In brackets are 95% intervals that hold together; {seeds} seeds resolve {plain(size, 4)} nats in "
        f"{POWER * 100:.0f}% of such leagues. `switch` learns, with a balance loss; `frozen` keeps its weights as "
        "drawn, with `balance=quantile`; `hash` fixes an expert for each character, greedily by frequency in training; "
        "`uniform` draws the expert, with `balance=none`."
    )


def power(now: Standing) -> str:
    """The line of the runs that were made first."""
    known, seeds, first = plan.power(now.results, now.league), now.league.seeds, plan.POWER_SEEDS
    if known is None:
        return ""
    steps = f"{now.steps:,} steps" + " (a rehearsal does not double them)" * now.league.rehearsal
    return (
        f"Power, measured before: with seeds {first} to {first + seeds - 1}, which are in no table, after "
        f"{now.league.steps:,} steps, `switch` less `frozen` was {known.difference:+.4f} nats, and the standard "
        f"deviation of a run {known.deviation:.4f}, so that {seeds} seeds of a table resolve {known.resolved:.4f} "
        f"nats. The difference is {'smaller' if known.doubles else 'no smaller'} in size, so the table has "
        f"{steps}."
    )


def default(now: Standing) -> str:
    """Which family the data would make the default."""
    own = [entry for entry in now.ranked(1)[0] if entry != DENSE]
    found = now.compared((one.variant, two.variant) for one in (*own, DENSE) for two in REFERENCES[1])
    better = [
        (entry, one)
        for entry in own
        if (one := found.get((entry.variant, SWITCH.variant))) and one.resolved and one.estimate.mean < 0.0
    ]
    of = "of the routers with about one expert per token and nothing dropped"
    words = f"None: no loss {of} is resolved below that of `switch`; the lowest is `{own[0].label}`"
    if better:
        entry, one = better[0]
        words = f"`{entry.label}`: it has the lowest loss {of} that is resolved from `switch` ({difference(one)} nats)"
    return f"{words}.{_clock(now, own)} The default stays the paper's."


def _clock(now: Standing, own: Sequence[Entry]) -> str:
    """Which of these has the highest effective speed-up; one that no run of dense reaches comes before all others."""
    known = [(one, speed) for one in own if (speed := now.speed_up(one.variant)) is not None]
    if not known:
        return ""
    first, speed = max(known, key=lambda pair: pair[1].ratio or (math.inf if pair[1].faster else 0.0))
    if speed.ratio is None:
        reach = (
            "even the longest run of `dense` has a higher loss" if speed.faster else "even the shortest has a lower one"
        )
        return f" By effective speed-up `{first.label}` comes first: {reach}."
    none = "" if speed.ratio > 1.0 else "none is faster than `dense`; "
    return f" By effective speed-up {none}`{first.label}` comes first ({speed.ratio:.2f} x `dense`)."


def verdict(certificate: Mapping[str, Any]) -> str:
    """How many checks pass, what leaks or fails, and what a leak comes to."""
    if not certificate:
        return MISSING
    verdicts, gap = certificate["verdicts"], certificate["gap"]
    found = [f"{name}: {'; '.join(verdicts[name])}" for name in ("LEAKS", "FAIL") if verdicts[name]]
    leak = f" (training rule less generation: {gap})" if verdicts["LEAKS"] and gap else ""
    return "; ".join([f"{len(verdicts['PASS'])} PASS", *found]) + leak


def reading(now: Standing) -> Bullets:
    at = now.stages.get("seconds", {}).get("all", {})
    idle = "" if at.get("idle") is None else f", {100 * at['idle']:.0f}% of the machine idle before"
    return Bullets((
        "Loss: nats per character on the whole validation split, nothing dropped, as generation pays it; mean ± half "
        f"of its 95% interval over {now.league.seeds} seeds, or as many as an entry says. Differences: with "
        "simultaneous 95% intervals for their table.",
        "Experts per token: computed in the last tenth of training, by the training rule. An entry whose number, with "
        f"what was dropped, is over {100 * CLASS_WIDTH:.0f}% off that of its class is not ranked. Dropped: share of "
        "choices in the last fifth of training. Busiest expert: of the worst layer, over the validation split. A "
        "capacity factor of 2.5 gives two experts per token as much room for each choice as 1.25 gives one. Cut-offs "
        "of expert choice and threshold average the last few steps (`router.cutoff_ema=0.5`): in so short a run longer "
        "averages lag behind.",
        "Step: forward, backward, clipping, optimizer and what the router learns after it, with trained weights, in "
        f"turns ({at.get('repetitions', MISSING)} each; threads: {at.get('threads', MISSING)}{idle}): medians, in "
        "brackets quartiles of the ratio. Written: near the end of a full window, with the cache and one thread.",
        "Effective speed-up: seconds that `dense` needs for the same loss over the seconds taken, with a 95% interval "
        "over seeds, of this figure alone. Under, over: beyond the ends of the curve of `dense`.",
        "What explains the choice: its share that the character explains, and beyond it the character before and the "
        "position in the window; less chance, mean over layers, of seed 0. Of several experts the one with the largest "
        "gate is the choice. Certificate: `python -m switch_lm.check` of seed 0.",
    ))  # fmt: skip


def played(now: Standing) -> tuple[Part, ...]:
    """Commands, runs, method, machine, commit."""
    rows, made = now.results.rows, [one for own in now.stages.values() for one in own.values()]
    facts = {
        "Machine of the runs": {row["machine"] for row in rows},
        "Machine of what was measured later": {one.get("machine") or "" for one in made},
        "Commit": {row["commit"] for row in rows} | {one.get("commit") or "" for one in made},
        "Torch": {row["torch"] for row in rows},
        "Text (sha256)": {row["text_sha256"] for row in rows},
    }
    runs = ", ".join(f"{sum(row['part'] == part for row in rows)} {part}" for part in plan.PARTS)
    left = [job for part in plan.PARTS for job in now.results.missing(now.league.jobs(part, now.steps))]
    lengths = ", ".join(f"{round(share * now.steps):,}" for share in sorted((*now.league.lengths, 1.0)))
    quick = now.league.rehearsal
    commands = (
        f"make league{'-quick' * quick}  # continues what was stopped; only what is missing is run",
        f"python scripts/league.py{' --quick' * quick} --report  # this page again",
    )
    return (
        Code("\n".join(commands)),
        Bullets((
            f"{len(rows)} runs ({runs}), {f'{len(left)} are missing' if left else 'none is missing'}: a line each in "
            f"`{now.league.csv}`. What was measured later is in `{now.league.stages}`. The page is made of the two.",
            f"The model of `experiment=capacity_sweep`; {now.steps:,} steps; seeds 0 to {now.league.seeds - 1}, the "
            "same batches for all; float32, not compiled; one validation, after the last step.",
            f"Dense's curve: runs of {lengths} steps, as many seeds, each with its full learning-rate decay. Where the "
            "mean loss rises with time by chance it is levelled; monotone cubic pieces over the logarithm of time join "
            "the lengths, and nothing is extrapolated. For the interval each seed is left out in turn, of both sides.",
            *(f"{name}: {'; '.join(sorted(filter(None, values)))}." for name, values in facts.items()),
        )),
    )  # fmt: skip
