"""docs/routers.md, made from the stored results alone: the answer first, then tables, pictures and how it was played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from contest import plan
from contest.plan import DENSE, DENSE2, ENTRIES, FACTORS, FROZEN, HASH, QUANTILE, SWITCH, TOP2, UNIFORM
from contest.standing import CLASS_WIDTH, Pairs, Standing, reversed_
from switch_lm.pages.document import Bullets, Cell, Code, Document, Part, Picture, Section, Series, Table, Text
from switch_lm.reporting.words import MISSING, interval, plain, spread
from switch_lm.stats.corrections import Compared
from switch_lm.stats.intervals import POWER, estimate
from switch_lm.storage.files import replace_text, replacing

CONTROLS = (FROZEN, HASH, UNIFORM)  # fixed, fixed and random
HEADLINE = (*((SWITCH, one) for one in CONTROLS), (QUANTILE, FROZEN))
REFERENCES = {1: (SWITCH, FROZEN, HASH, DENSE), 2: (TOP2, DENSE2)}
NUMBER = {1: "one expert", 2: "two experts"}
FIGURES = {
    "experts_per_token": ("Experts per token", 3, 1.0, ""),
    "dropped": ("Dropped", 1, 100.0, " %"),
    "load_max_over_mean": ("Busiest expert / mean", 2, 1.0, ""),
}
EXPLAIN = {"character": "Character", "previous character": "Previous character", "position in the window": "Position"}


def write(league: plan.League, results: plan.Results, stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Writes the page and its pictures, or says why it cannot."""
    from switch_lm.pages.markdown import to_markdown
    from switch_lm.pages.pictures import files_of

    steps = plan.steps_of(results, league)
    now = Standing(league, results, stages, steps or 0)
    if lacking := [one.label for one in (SWITCH, *CONTROLS, DENSE) if one.variant not in now.pool.values]:
        return f"{league.csv}: there is nothing to report before these have run: {', '.join(lacking)}"
    made = document(now)
    folder = league.page.with_name(f"{league.page.stem}_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {n: c for picture in made.pictures for n, c in files_of(picture, svg=False).items()}.items():
        with replacing(folder / name) as file:
            file.write(content)
    replace_text(league.page, to_markdown(made, pictures=folder.name))
    return None


def document(now: Standing) -> Document:
    first = now.compared((ours.variant, theirs.variant) for ours, theirs in HEADLINE)
    rehearsal = " (a rehearsal: too short to mean anything)" if now.league.rehearsal else ""
    tables = {None: "nothing dropped"} | {factor: f"capacity factor {factor}" for factor in FACTORS.values()}
    sections = [
        Section(
            f"About {NUMBER[experts]} per token, {tables[factor]}",
            (_losses(now, experts, factor), _costs(now, experts, factor))
            + (() if factor else (_routing(now, experts),)),
        )
        for limited in (False, True)
        for experts in NUMBER
        for factor in [FACTORS[experts] if limited else None]
    ]
    return Document(
        f"The router league: does learned routing beat a fixed or random assignment?{rehearsal}",
        f"{answer(now, first)} {_resolves(now, first)}",
        (
            Section("Learned against fixed and random", (_headline(now, first), _bars(now))),
            *sections,
            Section("Loss against time", tuple(_time(now))),
            Section("Which family the data would make the default", (Text(_default(now)),)),
            Section("How it was played", _played(now)),
        ),
    )


def answer(now: Standing, first: Pairs) -> str:
    """The first sentence."""
    compared = {f"`{one.label}`": first[SWITCH.variant, one.variant] for one in CONTROLS}
    won = [_by(name, reversed_(c)) for name, c in compared.items() if c.resolved and c.estimate.mean < 0.0]
    lost = [_by(name, c) for name, c in compared.items() if c.resolved and c.estimate.mean > 0.0]
    even = [f"{name} ({_difference(c)} nats)" for name, c in compared.items() if not c.resolved]
    groups = {"has a lower loss than": won, "has a higher one than": lost, "is not resolved from": even}
    parts = [f"{words} {', '.join(texts)}" for words, texts in groups.items() if texts]
    size = f"{now.mean('active_parameters', DENSE.variant) or 0.0:,.0f} active parameters, {now.steps:,} steps"
    verdict = "Yes" if len(won) == len(compared) else "In part" if won else "No"
    return f"{verdict}: at this scale ({size} on Tiny Shakespeare) learned routing, `switch`, {'; it '.join(parts)}."


def _by(name: str, one: Compared) -> str:
    return f"{name} by {one.estimate.mean:.4f} nats ({interval(one.interval, 4)})"


def _difference(one: Compared) -> str:
    return f"{one.estimate.mean:+.4f}, {interval(one.interval, 4)}{' *' * one.resolved}"


def _resolves(now: Standing, first: Pairs) -> str:
    seeds = now.loss(SWITCH.variant).count
    size = now.pool.detectable([pair for pair in first if pair[0] == SWITCH.variant])
    return (
        f"In brackets are 95 % intervals that hold together; {seeds} seeds resolve {plain(size, 4)} nats in {POWER:.0%} "
        "of such leagues. `switch` learns, with a balance loss; `frozen` keeps its weights as drawn and is balanced by "
        "`balance=quantile`; `hash` sends characters to experts greedily by their frequency in training; `uniform` draws "
        "the expert, with `balance=none`."
    )


def _headline(now: Standing, first: Pairs) -> Table:
    known, seeds = plan.power(now.results, now.league), now.league.seeds
    assert known is not None
    compared = {(a, b): one for a, b in HEADLINE if (one := first.get((a.variant, b.variant)))}
    rows = [
        (Cell(f"`{a.label}` less `{b.label}`"), Cell(spread(c.estimate, 4), c.estimate.mean), Cell(interval(c.interval, 4)),
         Cell("resolved" if c.resolved else "not resolved"))
        for (a, b), c in compared.items()
    ]  # fmt: skip
    steps = f"{now.steps:,} steps" + " (a rehearsal does not double them)" * now.league.rehearsal
    return Table(
        "Learned less not learned, nothing dropped, in nats",
        ("Difference", "± of this one alone", "Interval that holds with the others", "Verdict"),
        tuple(rows),
        f"Power, measured before: with seeds {plan.POWER_SEEDS} to {plan.POWER_SEEDS + seeds - 1}, which are in no table, "
        f"after {now.league.steps:,} steps, `switch` less `frozen` was {known.difference:+.4f} nats, and a run's deviation "
        f"{known.deviation:.4f}, of which {seeds} seeds of a table resolve {known.resolved:.4f}. The difference is "
        f"{'below' if known.doubles else 'not below'} that: {steps}.",
    )


def _bars(now: Standing) -> Picture:
    entries = [entry for own in now.ranked(1) for entry in own if entry != SWITCH]
    found = now.compared((entry.variant, SWITCH.variant) for entry in entries)
    means, low, high = _columns([found[entry.variant, SWITCH.variant] for entry in entries])
    names = tuple(entry.label for entry in entries)
    return Picture(
        "against_switch",
        "Loss less that of switch, about one expert per token",
        f"Loss less that of switch in nats, with intervals, of {', '.join(names)}.",
        "",
        "nats per character",
        (Series("less switch", tuple(map(float, range(len(names)))), means, low, high),),
        note="Below 0: better than switch. Lines: 95 % intervals that hold together.",
        x_names=names,
    )


def _columns(found: Sequence[Compared]) -> tuple[tuple[float, ...], ...]:
    """Means, low ends and high ends."""
    rows = [(one.estimate.mean, *(one.interval or (one.estimate.mean,) * 2)) for one in found]
    return tuple(zip(*rows, strict=True))


def _losses(now: Standing, experts: int, factor: float | None) -> Table:
    """By loss, less each reference, and less itself without a limit."""
    own, others = now.ranked(experts, factor)
    name = {entry: plan.name_of(entry.variant, factor) for entry in own + others}
    seconds = {f"less `{one.label}`": one for one in REFERENCES[experts] if one in name}
    pairs = [(ours, name[one]) for ours in name.values() for one in seconds.values()]
    pairs += [(name[entry], entry.variant) for entry in name if factor]
    found, rows = now.compared(pairs), []
    for entry, ours in name.items():
        less = [found.get((ours, name[one])) for one in seconds.values()]
        less += [found.get((ours, entry.variant))] * bool(factor)
        figures = [plain(now.mean(key, entry.variant, factor), *form) for key, (_, *form) in FIGURES.items()]
        rows.append((
            Cell(str(1 + own.index(entry)) if entry in own else "not ranked"),
            Cell(f"`{entry.label}`"),
            Cell(spread(now.loss(ours), 4), now.loss(ours).mean),
            *(Cell(_difference(one), one.estimate.mean) if one else Cell(MISSING) for one in less),
            *map(Cell, figures),
        ))  # fmt: skip
    itself = ("less itself without a limit",) * bool(factor)
    return Table(
        "By loss",
        ("Place", "Entry", "Loss", *seconds, *itself, *(heading for heading, *_ in FIGURES.values())),
        tuple(rows),
        "Loss: nats per character on the whole validation split, nothing dropped, as generation pays it; mean ± half of "
        f"its 95 % interval over {now.league.seeds} seeds. Differences: with 95 % intervals that hold together for all "
        f"{len(found) // 2} of this table; * excludes 0. Experts per token: computed in the last tenth of training; over "
        f"{CLASS_WIDTH:.0%} away from {experts}, an entry is not ranked. Dropped: share of choices in the last fifth of "
        "training. Busiest expert: of the worst layer, over the validation split.",
    )


def _costs(now: Standing, experts: int, factor: float | None) -> Table:
    stages = ("seconds",) if factor else ("seconds", "generation")  # which is the same with a capacity
    rows = []
    for entry in (entry for own in now.ranked(experts, factor) for entry in own):
        name = plan.name_of(entry.variant, factor)
        step, *written = (_timed(now.measured(stage, name)) for stage in stages)
        faster = now.speed_up(name)
        shown = Cell(str(faster or MISSING), faster and (faster.ratio or faster.reach[faster.faster]))
        rows.append((Cell(f"`{entry.label}`"), *step, shown, *(cell for cells in written for cell in cells)))
    at = now.stages.get("seconds", {}).get("all", {})
    idle = "" if at.get("idle") is None else f", {at['idle']:.0%} of the machine idle before"
    return Table(
        "What it costs",
        ("Entry", "Milliseconds per step", "over dense", "Effective speed-up",
         *("Milliseconds per character written", "over dense") * (len(stages) - 1)),
        tuple(rows),
        "Step: forward, backward, clipping, optimizer and what the router learns after it, with trained weights, in turns "
        f"({at.get('repetitions', MISSING)} each, {at.get('threads', MISSING)} threads{idle}): medians, in brackets "
        "quartiles of the ratio. Effective speed-up: seconds that `dense` needs for the same loss over the seconds taken, "
        "with a 95 % interval over seeds of this figure alone; under, over: dense's curve reaches no further."
        + " Written: near the end of a full window, with the cache and one thread." * (len(stages) - 1),
    )  # fmt: skip


def _timed(found: Mapping[str, Any]) -> tuple[Cell, Cell]:
    if not found:
        return Cell(MISSING), Cell(MISSING)
    ratio = found["to_dense"]
    text = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return Cell(f"{1000 * found['seconds']['median']:.2f}"), Cell(text, ratio["median"])


def _routing(now: Standing, experts: int) -> Table:
    entries = [entry for own in now.ranked(experts) for entry in own if entry not in (DENSE, DENSE2)]
    explained = {entry: now.measured("explanation", entry.variant) for entry in entries}
    rows = []
    for entry, own in explained.items():
        shares = [Cell(plain(own.get(label, {}).get("share"), 1, 100.0, " %")) for label in EXPLAIN]
        rows.append((Cell(f"`{entry.label}`"), *shares, Cell(_verdict(now.measured("certificate", entry.variant)))))
    widest = max((own[label]["half"] for own in explained.values() if own for label in EXPLAIN), default=0.0)
    return Table(
        "What explains the choice, and the certificate",
        ("Entry", *EXPLAIN.values(), "Certificate"),
        tuple(rows),
        "Shares of the choice of expert that the character explains, and beyond it the character before and the position "
        "in the window: less chance, mean over layers, of seed 0; of several experts the one with the largest gate. The "
        f"widest 95 % interval of a layer is ± {widest:.1%}. Certificate: `python -m switch_lm.check` of seed 0.",
    )


def _verdict(certificate: Mapping[str, Any]) -> str:
    if not certificate:
        return MISSING
    verdicts, gap = certificate["verdicts"], certificate["gap"]
    found = [f"{name}: {', '.join(verdicts[name])}" for name in ("LEAKS", "FAIL") if verdicts[name]]
    leak = f" (training rule less generation: {gap})" if verdicts["LEAKS"] and gap else ""
    return "; ".join([f"{len(verdicts['PASS'])} PASS", *found]) + leak


def _time(now: Standing) -> Iterator[Part]:
    timed = {one: s for one in ENTRIES if one.variant in now.pool.values and (s := now.seconds(one.variant))}
    timed.pop(DENSE, None)
    if not timed or not now.curve:
        return
    names = tuple(entry.label for entry in timed)
    on_curve = [one for own in now.curve.values() if (one := estimate(list(own.values())))]
    curve = _columns([Compared(one, one.interval()) for one in on_curve])
    points = _columns([Compared(one, one.interval()) for one in (now.loss(entry.variant) for entry in timed)])
    yield Picture(
        "loss_against_time",
        "Loss against seconds of training",
        f"Loss against seconds of training: a line for dense at {len(on_curve)} lengths, points for {', '.join(names)}.",
        "seconds of training steps",
        "validation loss (nats per character)",
        (Series("dense", tuple(now.curve), *curve), Series("entry", tuple(timed.values()), *points, names, line=False)),
        note="Below the line: a lower loss than dense in the same time. Each point of the line is runs of that length, each "
        "with its whole decay. Bars and band: 95 % intervals.",
    )  # fmt: skip


def _default(now: Standing) -> str:
    own = [entry for entry in now.ranked(1)[0] if entry != DENSE]
    found = now.compared((one.variant, two.variant) for one in (*own, DENSE) for two in REFERENCES[1])
    better = [
        (entry, one) for entry in own
        if (one := found.get((entry.variant, SWITCH.variant))) and one.resolved and one.estimate.mean < 0.0
    ]  # fmt: skip
    fast = {ratio: one for one in own if (known := now.speed_up(one.variant)) and (ratio := known.ratio)}
    clock = f" On the clock `{fast[max(fast)].label}` comes first ({max(fast):.2f})." if fast else ""
    of = "of those with about one expert per token and nothing dropped,"
    words = f"None: {of} none is resolved to have a lower loss than `switch`; the lowest is that of `{own[0].label}`"
    if better:
        entry, one = better[0]
        words = f"`{entry.label}`: {of} it has the lowest loss that is resolved from `switch` ({_difference(one)} nats)"
    return f"{words}.{clock} The default stays the paper's."


def _played(now: Standing) -> tuple[Part, ...]:
    rows, made = now.results.rows, [one for own in now.stages.values() for one in own.values()]
    facts = {
        "Machine": {row["machine"] for row in rows},
        "Commit": {row["commit"] for row in rows} | {one["commit"] or "" for one in made},
        "Torch": {row["torch"] for row in rows},
        "Text (sha256)": {row["text_sha256"] for row in rows},
    }
    runs = ", ".join(f"{sum(row['part'] == part for row in rows)} {part}" for part in plan.PARTS)
    left = [job for part in plan.PARTS for job in now.results.missing(now.league.jobs(part, now.steps))]
    lengths = ", ".join(f"{round(share * now.steps):,}" for share in sorted((*now.league.lengths, 1.0)))
    command = f"make league{'-quick' * now.league.rehearsal}"
    return (
        Code(f"{command}  # continues what was stopped; only what is missing is run\n"
             f"python scripts/league.py{' --quick' * now.league.rehearsal} --report  # this page again"),
        Bullets((
            f"{len(rows)} runs ({runs}), {f'{len(left)} are missing' if left else 'none is missing'}: a line each in "
            f"`{now.league.csv}`. What was measured afterwards is in `{now.league.stages}`. The page is made of these two.",
            f"The model of `experiment=capacity_sweep`; {now.steps:,} steps; seeds 0 to {now.league.seeds - 1}, with the "
            "same batches for all; float32, not compiled; one validation, after the last step.",
            f"Dense's curve: runs of {lengths} steps, as many seeds, each with its whole decay. Where the mean loss rises "
            "with time by chance it is levelled; monotone cubic pieces over the logarithm of time join the lengths, and "
            "nothing is extrapolated. For the interval each seed is left out in turn, of both sides.",
            *(f"{name}: {'; '.join(sorted(filter(None, values)))}." for name, values in facts.items()),
        )),
    )  # fmt: skip
