"""docs/routers.md, made from the stored results alone: the answer first, then tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from contest import plan, words
from contest.plan import DENSE, DENSE2, ENTRIES, FACTORS, SWITCH
from contest.standing import Pairs, Standing
from contest.words import CONTROLS, HEADLINE, REFERENCES, difference
from switch_lm.pages.document import Cell, Document, Picture, Section, Series, Table, Text
from switch_lm.pages.numbers import MISSING, interval, plain
from switch_lm.reporting.words import spread
from switch_lm.stats.corrections import Compared
from switch_lm.stats.intervals import estimate
from switch_lm.storage.files import replace_text, replacing

NUMBER = {1: "one expert", 2: "two experts"}
FIGURES = {
    "experts_per_token": ("Experts per token", 3, 1.0, ""),
    "dropped": ("Dropped", 1, 100.0, "%"),
    "load_max_over_mean": ("Busiest expert / mean", 2, 1.0, ""),
}
EXPLAIN = {"character": "Character", "previous character": "Previous character", "position in the window": "Position"}


def write(league: plan.League, results: plan.Results, stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Writes the page and its pictures, or says why it cannot."""
    from switch_lm.pages.markdown import to_markdown
    from switch_lm.pages.pictures import files_of

    now = Standing(league, results, stages, plan.steps_of(results, league) or 0)
    if lacking := [one.label for one in (SWITCH, *CONTROLS, DENSE) if one.variant not in now.pool.values]:
        return f"{league.csv}: there is nothing to report before these have run: {', '.join(lacking)}"
    made, folder = document(now), league.page.with_name(f"{league.page.stem}_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in made.pictures:
        for name, content in files_of(picture, svg=False).items():
            with replacing(folder / name) as file:
                file.write(content)
    replace_text(league.page, to_markdown(made, pictures=folder.name))
    return None


def document(now: Standing) -> Document:
    first = now.compared((ours.variant, theirs.variant) for ours, theirs in HEADLINE)
    rehearsal = " (a rehearsal: too short to mean anything)" if now.league.rehearsal else ""
    sections = [
        Section(f"About {NUMBER[n]} per token, nothing dropped", (_losses(now, n), _costs(now, n), _routing(now, n)))
        for n in NUMBER
    ]
    sections += [
        Section(f"About {NUMBER[n]} per token, capacity factor {f}", (_losses(now, n, f), _costs(now, n, f)))
        for n, f in FACTORS.items()
    ]
    return Document(
        f"The router league: does learned routing beat a fixed or random assignment?{rehearsal}",
        f"{words.answer(now, first)} {words.resolves(now, first)}",
        (
            Section("Learned against fixed and random", (_headline(now, first), _against_switch(now))),
            Section("How to read the tables", (words.reading(now),)),
            *sections,
            Section("Loss against time", tuple(_time(now)) or (Text("Nothing has been timed yet."),)),
            Section("Which family the data would make the default", (Text(words.default(now)),)),
            Section("How it was played", words.played(now)),
        ),
    )


def _headline(now: Standing, first: Pairs) -> Table:
    rows = [
        (
            Cell(f"`{ours.label}` less `{theirs.label}`"),
            Cell(spread(one.estimate, 4), one.estimate.mean),
            Cell(interval(one.interval, 4)),
            Cell("resolved" if one.resolved else "not resolved"),
        )
        for ours, theirs in HEADLINE
        if (one := first.get((ours.variant, theirs.variant)))
    ]
    headings = ("Difference", "± of this difference alone", "Simultaneous interval", "Verdict")
    return Table(
        "Loss of learned less fixed or random routing, nothing dropped, in nats",
        headings,
        tuple(rows),
        words.power(now),
    )


def _against_switch(now: Standing) -> Picture:
    entries = [entry for own in now.ranked(1) for entry in own if entry != SWITCH]
    found = now.compared((entry.variant, SWITCH.variant) for entry in entries)
    columns = _columns([found[entry.variant, SWITCH.variant] for entry in entries])
    names, places = tuple(entry.label for entry in entries), tuple(float(1 + n) for n in range(len(entries)))
    return Picture(
        "against_switch",
        "Loss less that of switch, about one expert per token",
        f"Loss less that of switch in nats, with intervals, of {', '.join(names)}.",
        "by loss; those that are not ranked come last",
        "nats per character",
        (Series("entry", places, *columns, names, line=False),),
        note="Below 0: better than switch. Bars: 95% intervals that hold together.",
    )


def _columns(found: Sequence[Compared]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Means, low ends and high ends; without an interval all are the mean."""
    ends = [one.interval or (one.estimate.mean, one.estimate.mean) for one in found]
    return tuple(one.estimate.mean for one in found), tuple(low for low, _ in ends), tuple(high for _, high in ends)


def _losses(now: Standing, experts: int, factor: float | None = None) -> Table:
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
        figures = [
            plain(now.mean(key, entry.variant, factor), digits, scale, unit)
            for key, (_, digits, scale, unit) in FIGURES.items()
        ]
        rows.append((
            Cell(str(1 + own.index(entry)) if entry in own else "not ranked"),
            Cell(f"`{entry.label}`{_fewer(now, ours)}"),
            Cell(spread(now.loss(ours), 4), now.loss(ours).mean),
            *(Cell(difference(one), one.estimate.mean) if one else Cell(MISSING) for one in less),
            *map(Cell, figures),
        ))  # fmt: skip
    itself = ("less itself without a limit",) * bool(factor)
    return Table(
        "By loss",
        ("Place", "Entry", "Loss", *seconds, *itself, *(heading for heading, *_ in FIGURES.values())),
        tuple(rows),
        f"* excludes 0. The intervals of all {len(found) // 2} differences hold together.",
    )


def _fewer(now: Standing, name: str) -> str:
    """Where runs are missing."""
    count = now.loss(name).count
    return f" ({count} seed{'s' * (count > 1)})" * (count < now.league.seeds)


def _costs(now: Standing, experts: int, factor: float | None = None) -> Table:
    stages = ("seconds",) if factor else ("seconds", "generation")  # which is the same with a capacity
    rows = []
    for entry in (entry for own in now.ranked(experts, factor) for entry in own):
        name = plan.name_of(entry.variant, factor)
        step, *written = (_timed(now.measured(stage, name)) for stage in stages)
        faster = now.speed_up(name)
        place = None if faster is None else faster.ratio or faster.reach[faster.faster]
        shown = Cell(str(faster or MISSING), place)
        rows.append((Cell(f"`{entry.label}`"), *step, shown, *(cell for cells in written for cell in cells)))
    writes = ("Milliseconds per character written", "over dense") * (len(stages) - 1)
    headings = ("Entry", "Milliseconds per step", "over dense", "Effective speed-up", *writes)
    return Table("What it costs", headings, tuple(rows))


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
        shares = [Cell(plain(own.get(label, {}).get("share"), 1, 100.0, "%")) for label in EXPLAIN]
        checked = words.verdict(now.measured("certificate", entry.variant))
        rows.append((Cell(f"`{entry.label}`"), *shares, Cell(checked)))
    widest = max((own[label]["half"] for own in explained.values() if own for label in EXPLAIN), default=None)
    return Table(
        "What explains the choice, and the certificate",
        ("Entry", *EXPLAIN.values(), "Certificate"),
        tuple(rows),
        f"The widest 95% interval of a layer is ± {plain(widest, 1, 100.0, '%')}.",
    )


def _time(now: Standing) -> Iterator[Picture]:
    timed = {one: s for one in ENTRIES if one.variant in now.pool.values and (s := now.seconds(one.variant))}
    timed.pop(DENSE, None)
    if not timed or not now.curve:
        return
    names = tuple(entry.label for entry in timed)
    on_curve = [one for own in now.curve.values() if (one := estimate(list(own.values())))]
    curve = _columns([Compared(one, one.interval()) for one in on_curve])
    points = _columns([Compared(one, one.interval()) for one in (now.loss(entry.variant) for entry in timed)])
    lengths = f"a line for dense at {len(on_curve)} lengths"
    yield Picture(
        "loss_against_time",
        "Loss against seconds of training",
        f"Loss against seconds of training: {lengths}, points for {', '.join(names)}.",
        "seconds of training steps",
        "validation loss (nats per character)",
        (Series("dense", tuple(now.curve), *curve), Series("", tuple(timed.values()), *points, names, line=False)),
        note="Below the line: a lower loss than dense in the same time. Each point of the line is runs of that length, "
        "each with its full learning-rate decay. Bars and band: 95% intervals.",
    )
