"""docs/plays_study.md, from the stored results alone: where sparse pays first, then tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from study import plan
from study.plan import DENSE, MEDIUM, RECIPES, SMALL, SWITCH, TEXTS, TUNING, WIDE, Results
from switch_lm.pages.document import Bullets, Cell, Code, Document, Picture, Section, Series, Table, Text
from switch_lm.pages.numbers import MISSING, interval, plain
from switch_lm.reporting.words import spread
from switch_lm.stats.contrasts import Pool
from switch_lm.stats.intervals import estimate, t_quantile
from switch_lm.stats.speed_up import SpeedUp, speed_up, speed_up_of_mean
from switch_lm.storage.files import replace_text, replacing

PAGE = Path("docs", "plays_study.md")
GOALS = {("plays", SWITCH, 1800): 1.36, ("plays", SWITCH, 3600): 1.315}  # validation loss, at most
WIDE_GOAL, GOAL_SHARE = 1.28, 0.75  # of the wide recipe; of dense's seconds to an equal loss after 3,600 steps


@dataclass(frozen=True)
class Point:
    """A sparse model beside the curve of dense of its width."""

    width: int
    text: str
    experts: int
    found: SpeedUp

    @property
    def side(self) -> int:
        """1: takes fewer seconds than dense to an equal loss, -1: more, 0: not told apart, or no interval is known."""
        low, high = self.found.interval or (0.0, math.inf)
        return 1 if low > 1.0 else -1 if high < 1.0 else 0


@dataclass(frozen=True, eq=False)
class Study:
    """All that is known."""

    results: Results
    times: Mapping[str, Any]

    def seconds(self, part: str, model: str, text: str) -> float | None:
        """Of a step."""
        found = self.times.get("entries", {}).get(plan.step_name(part, model, text))
        return float(found["seconds"]["median"]) if found else None

    def curve(self, part: str, text: str) -> Mapping[float, dict[int, float]]:
        """Dense's losses by seconds of training and seed."""
        lengths = plan.SMALL_LENGTHS if part == SMALL else plan.DENSE_LENGTHS
        step = self.seconds(part, DENSE, text) or 0.0
        return {step * n: own for n, own in plan.by_length(self.results, part, text, lengths).items() if step}

    @cached_property
    def deviation(self) -> dict[str, tuple[float, int]]:
        """By part: the standard deviation of a run over seeds, pooled, and its degrees of freedom."""
        found = {}
        for part in (RECIPES, SMALL):
            groups: dict[tuple[str, str, str], list[float]] = {}
            for row in self.results.rows:
                if row["part"] == part:
                    groups.setdefault((row["model"], row["text"], row["steps"]), []).append(float(row["val_loss"]))
            spreads = [(variance(own), len(own) - 1) for own in groups.values() if len(own) > 1]
            if freedom := sum(n for _, n in spreads):
                found[part] = (math.sqrt(sum(v * n for v, n in spreads) / freedom), freedom)
        return found

    def half(self, part: str, ours: int, curve: int) -> float | None:
        """Half of the 95% interval of a difference between the means of so many runs."""
        if part not in self.deviation:
            return None
        deviation, freedom = self.deviation[part]
        return t_quantile(freedom) * deviation * math.sqrt(1 / ours + 1 / curve)

    def points(self) -> Iterator[Point]:
        for text in TEXTS:
            for experts in plan.SMALL_EXPERTS:
                yield from self._point(64, text, experts, SMALL, SMALL, f"{experts} experts", plan.SMALL_STEPS)
        yield from self._point(128, "plays", 8, RECIPES, RECIPES, SWITCH, plan.MEDIUM_STEPS)
        for experts in plan.MEDIUM_EXPERTS:
            yield from self._point(128, "plays", experts, MEDIUM, RECIPES, f"{experts} experts", plan.MEDIUM_STEPS)

    def _point(
        self, width: int, text: str, experts: int, part: str, beside: str, model: str, steps: int
    ) -> Iterator[Point]:
        losses, step = self.results.losses(part, model, text, steps), self.seconds(part, model, text)
        curve = self.curve(beside, text)
        if losses and step and len(curve) > 1:
            half = self.half(beside, len(losses), min(map(len, curve.values())))
            means = {seconds: fmean(own.values()) for seconds, own in curve.items()}
            found = speed_up_of_mean(means, fmean(losses.values()), half, steps * step)
            yield Point(width, text, experts, found)


def write(results: Results, times: Mapping[str, Any]) -> None:
    from switch_lm.pages.markdown import to_markdown
    from switch_lm.pages.pictures import files_of

    made, folder = document(Study(results, times)), PAGE.with_name("plays_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in made.pictures:
        for name, content in files_of(picture, svg=False).items():
            with replacing(folder / name) as file:
                file.write(content)
    replace_text(PAGE, to_markdown(made, pictures=folder.name))


def document(study: Study) -> Document:
    points = list(study.points())
    pictures = (_picture(points),) if points else ()
    return Document(
        "Where sparse beats dense",
        _lead(points),
        (
            Section("Effective speed-up", (*pictures, _speed_ups(points))),
            Section("The default recipe on both texts", (_recipes(study), *_against(study), _wide(study))),
            Section("What was tuned", (_tuned(study), _averages(study))),
            Section("How it was measured", _how(study)),
        ),
    )


def _lead(points: list[Point]) -> str:
    groups = {1: "Sparse pays with", 0: "it is not told apart from dense with", -1: "it loses with"}
    parts = []
    for side, words in groups.items():
        places: dict[int, list[str]] = {}
        for point in points:
            if point.side == side:
                places.setdefault(point.experts, []).append(f"width {point.width} on {point.text}")
        named = [f"{experts} experts ({', '.join(own)})" for experts, own in sorted(places.items())]
        parts += [f"{words} {', '.join(named)}"] if named else []
    if not parts:
        return "Nothing has been timed yet, so nothing can be said of where sparse pays."
    first = "; ".join(parts)
    return f"{first[0].upper()}{first[1:]}: by the seconds that dense takes to the same validation loss."


def _picture(points: list[Point]) -> Picture:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(f"width {point.width}, {point.text}", []).append(point)
    series = []
    for label, own in groups.items():
        shown = [one.found.ratio or one.found.reach[one.found.faster] for one in own]
        ends = [one.found.interval or (middle, middle) for one, middle in zip(own, shown, strict=True)]
        clipped = [
            (max(low, one.found.reach[0]), min(high, one.found.reach[1]))
            for one, (low, high) in zip(own, ends, strict=True)
        ]
        low, high = zip(*clipped, strict=True)
        series.append(Series(label, tuple(float(one.experts) for one in own), tuple(shown), low, high))
    return Picture(
        "effective_speed_up",
        "Seconds that dense needs for the same loss, over the seconds taken",
        f"Effective speed-up by number of experts, of {', '.join(groups)}.",
        "experts",
        "effective speed-up",
        tuple(series),
        x_log=True,
        note="Above 1: sparse takes fewer seconds. Bars: 95%, by the spread over seeds; cut off at the curve's ends.",
    )


def _speed_ups(points: list[Point]) -> Table:
    rows = []
    for one in points:
        place = one.found.ratio or one.found.reach[one.found.faster]
        rows.append((Cell(str(one.width)), Cell(one.text), Cell(str(one.experts)), Cell(str(one.found), place)))
    headings = ("Width", "Text", "Experts", "Seconds of dense / seconds taken")
    note = "Under, over: beyond the ends of the curve of dense; nothing is extrapolated."
    return Table("Effective speed-up", headings, tuple(rows), note)


def _recipes(study: Study) -> Table:
    rows = []
    for text in TEXTS:
        for model in (SWITCH, DENSE):
            lengths = plan.DENSE_LENGTHS if (model, text) == (DENSE, "plays") else plan.LENGTHS
            for steps in lengths:
                losses, step = study.results.losses(RECIPES, model, text, steps), study.seconds(RECIPES, model, text)
                goal = GOALS.get((text, model, steps))
                rows.append((
                    Cell(f"{text} ({TEXTS[text]})"), Cell(model), Cell(f"{steps:,}"),
                    Cell(spread(estimate(list(losses.values())), 4)), Cell(str(len(losses))),
                    Cell(plain(goal, 3)), Cell(plain(step and step * steps, 0, 1.0, " s")),
                ))  # fmt: skip
    headings = ("Text", "Model", "Steps", "Validation loss", "Seeds", "Goal, at most", "Seconds")
    note = "Nats per character of the standard 111,540 characters; mean ± half of its 95% interval over seeds."
    return Table("Switch and its dense control, tuned with equal care", headings, tuple(rows), note)


def _against(study: Study) -> Iterator[Text | Table]:
    rows = []
    for text in TEXTS:
        for steps in plan.LENGTHS:
            pool = Pool({one: study.results.losses(RECIPES, one, text, steps) for one in (SWITCH, DENSE)})
            if not all(pool.values.values()):
                continue
            (one,) = pool.family([(SWITCH, DENSE)])
            rows.append((
                Cell(text), Cell(f"{steps:,}"), Cell(spread(one.estimate, 4), one.estimate.mean),
                Cell(interval(one.interval, 4)), Cell("resolved" if one.resolved else "not resolved"),
                Cell(*_time_to_equal_loss(study, text, steps)),
            ))  # fmt: skip
    if rows:
        headings = ("Text", "Steps", "Switch less dense, nats", "95% interval", "Verdict", "Effective speed-up")
        note = f"The goal after 3,600 steps on `plays`: at least {1 / GOAL_SHARE:.2f}, resolved."
        yield Table("Switch against dense after equal steps", headings, tuple(rows), note)


def _time_to_equal_loss(study: Study, text: str, steps: int) -> tuple[str, float | None]:
    losses, step = study.results.losses(RECIPES, SWITCH, text, steps), study.seconds(RECIPES, SWITCH, text)
    curve = study.curve(RECIPES, text) if text == "plays" else {}
    if not step or len(curve) < 2 or not set(losses).intersection(*curve.values()):
        return MISSING, None
    found = speed_up(curve, losses, steps * step)
    return str(found), found.ratio


def _wide(study: Study) -> Text:
    losses = study.results.losses(WIDE, SWITCH, "plays", 5200)
    if not losses:
        return Text("The wide recipe has not been run.")
    return Text(
        f"`experiment=wide data=plays` (width 192, 5,200 steps): {fmean(losses.values()):.4f}, one seed; the goal was "
        f"at most {WIDE_GOAL}."
    )


def _tuned(study: Study) -> Table:
    rows = []
    for row in (row for row in study.results.rows if row["part"] == TUNING):
        keys = plan.chosen(study.results, row["model"], row["text"])
        verdict = "chosen" * (row["overrides"].replace("data.split=tuning ", "") == keys)
        cells = (row["text"], row["model"], f"`{row['overrides']}`", f"{float(row['val_loss']):.4f}", verdict)
        rows.append(tuple(map(Cell, cells)))
    note = "600 steps, one seed; loss on the last 5% of the training text, which is not trained on here."
    return Table("Learning rate and dropout", ("Text", "Model", "Keys", "Loss", ""), tuple(rows), note)


def _averages(study: Study) -> Table:
    own = [row for row in study.results.rows if row["part"] == TUNING]
    rows = []
    for name in plan.AVERAGES if own else ():
        less = estimate([json.loads(row["averaged"])[name] - float(row["val_loss"]) for row in own])
        verdict = "helps" if less and less.resolved(len(plan.AVERAGES)) and less.mean < 0 else "does not help"
        rows.append((Cell(f"`{name}`"), Cell(spread(less, 4)), Cell(verdict)))
    note = "Over the runs that were tuned: loss of the averaged weights less that of the last ones, in nats."
    return Table("Averaged weights", ("`optim.averages`", "Difference", "Verdict"), tuple(rows), note)


def _how(study: Study) -> tuple[Code, Bullets]:
    rows, left = study.results.rows, study.results.missing(plan.jobs(study.results))
    times = study.times
    facts = {
        "Machine of the runs": {row["machine"] for row in rows},
        "Commit": {row["commit"] for row in rows} | {times.get("commit", "")},
        "Torch": {row["torch"] for row in rows},
        "Machine of the times": {times.get("machine", "")},
    }
    return Code("make plays-study  # continues what was stopped; only what is missing is run"), Bullets((
        f"{len(rows)} runs, {f'{len(left)} are missing' if left else 'none is missing'}: a line each in `{plan.DATA}`.",
        "float32; the loss at the last step, the only validation. Learning rate and dropout of the default recipe and "
        "of its dense control were chosen in runs of 600 steps with one seed, without the standard validation text, "
        "which is scored once for each run of a recipe. The other models take them over (16 and 64 experts at width "
        "128; the wide recipe its dropout) or are those of `experiment=small` and `small_dense`.",
        "Seconds: steps times the median step, timed afterwards in turns with nothing else running, with routers that "
        "have spread their load.",
        *(f"{name}: {'; '.join(sorted(filter(None, values)))}." for name, values in facts.items()),
    ))  # fmt: skip
