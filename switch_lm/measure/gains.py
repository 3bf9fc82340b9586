"""Where one model is better than another: the difference of their losses by play or by speaker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.pages.document import Picture, Series
from switch_lm.stats.clusters import means_of_parts
from switch_lm.stats.corrections import holm
from switch_lm.text.divisions import Division

OTHERS, WHOLE = "all others", "everything"
NONE = (math.nan, math.nan)  # of an interval
FEWEST, SPEAKERS = 1000, 20  # parts of fewer characters, and all but so many speakers, are among the others


@dataclass(frozen=True)
class Gain:
    """The losses of two models in one part of a text, in nats per character, and the first minus the second."""

    name: str
    characters: int
    scenes: int
    loss: float
    other_loss: float
    difference: float
    interval: tuple[float, float] | None  # of a part: corrected for all parts
    resolved: bool


@dataclass(frozen=True)
class Gains:
    """The parts, from the one where the first model gains most, then all others; and the whole."""

    by: str
    comparisons: int
    parts: tuple[Gain, ...]
    whole: Gain

    def lines(self) -> list[str]:
        """A table, its summary, and what its intervals mean."""
        rows, named = (*self.parts, self.whole), [part for part in self.parts if part.name != OTHERS]
        width = max(len(row.name) for row in rows)
        counts = [
            f"{len(won)} of {len(named)} {self.by}s ({sum(part.resolved for part in won)} resolved)"
            for won in ([part for part in named if sign * part.difference < 0.0] for sign in (1, -1))
        ]
        return [
            f"{self.by:<{width}}{'characters':>12}{'scenes':>8}{'A':>9}{'B':>9}{'A - B':>10}   95% interval",
            *(_line(row, width) for row in rows),
            "",
            f"A is better in {counts[0]}, B in {counts[1]}.",
            "The intervals cover the variation between scenes of this text, for these two runs, not between seeds.",
            f"They are corrected for {self.comparisons} comparisons (Holm), except the one for {WHOLE}.",
        ]

    def picture(self, first: str, second: str) -> Picture:
        """A dot for each part, from the top."""
        rows, series = (*self.parts, self.whole), []
        kinds = ["resolved" if part.resolved else "not resolved" for part in self.parts] + [WHOLE]
        for kind in dict.fromkeys(kinds):
            of_kind = [(float(n), row) for n, row in enumerate(rows) if kinds[n] == kind]
            x, y = zip(*((n, row.difference) for n, row in of_kind), strict=True)
            low, high = zip(*(row.interval or NONE for _, row in of_kind), strict=True)
            series.append(Series(kind, x, y, low, high))
        return Picture(
            name=f"evaluate_by_{self.by}",
            title=f"Loss of {first} minus that of {second}, by {self.by}",
            alt=f"A row for each {self.by}, with the difference of the two losses and its interval.",
            x_label=self.by,
            y_label=f"nats per character; below 0 {first} is better; 95% intervals over scenes, not over seeds",
            series=tuple(series),
            x_names=tuple(row.name for row in rows),
            sideways=True,
        )


def _line(row: Gain, width: int) -> str:
    figures = f"{row.characters:>12,}{row.scenes:>8}{row.loss:>9.4f}{row.other_loss:>9.4f}{row.difference:>+10.4f}"
    interval = "no interval" if row.interval is None else "{:+.4f} to {:+.4f}".format(*row.interval)
    return f"{row.name:<{width}}{figures}   {interval}" + f"  {'AB'[row.difference > 0.0]} is better" * row.resolved


def gains(loss_N: Tensor, other_N: Tensor, division: Division, *, by: str) -> Gains:
    """From two models' losses of the same N predictions, in nats, and the division of the N + 1 characters.

    A prediction belongs to its target. Scenes are the units: characters of one scene are not independent samples.
    """
    part_N, scene_N = (torch.as_tensor(ids[1:]).long() for ids in (division.part_N, division.scene_N))
    count_P = part_N.bincount(minlength=len(division.names))
    order = count_P.argsort(descending=True, stable=True)[: SPEAKERS if by == "speaker" else None]
    named = order[count_P[order] >= FEWEST]
    row_P = torch.full_like(count_P, len(named))
    row_P[named] = torch.arange(len(named))
    row_N, num_rows, num_scenes = row_P[part_N], len(named) + 1, int(scene_N.max()) + 1
    cell_N = row_N * num_scenes + scene_N

    def summed(value_N: Tensor) -> Tensor:
        """By row, the others last, and by scene."""
        return cell_N.bincount(value_N.double(), minlength=num_rows * num_scenes).view(num_rows, num_scenes)

    sums = [summed(value_N) for value_N in (loss_N, other_N, torch.ones_like(loss_N))]
    names = [*(division.names[part] for part in named.tolist()), OTHERS]
    used = [n for n, count in enumerate(sums[-1].sum(dim=1).tolist()) if count > 0.0]
    rows = _gains([names[n] for n in used], *(sum_RB[used] for sum_RB in sums))
    rows.sort(key=lambda gain: (gain.name == OTHERS, gain.difference))
    (whole,) = _gains([WHOLE], *(sum_RB.sum(dim=0, keepdim=True) for sum_RB in sums))
    return Gains(by, sum(row.interval is not None for row in rows), tuple(rows), whole)


def _gains(names: list[str], loss_RB: Tensor, other_RB: Tensor, number_RB: Tensor) -> list[Gain]:
    """One for each row, from the sums over its cells."""
    compared, number_R = holm(means_of_parts(loss_RB - other_RB, number_RB)), number_RB.sum(dim=1)
    losses = ((sum_RB.sum(dim=1) / number_R).tolist() for sum_RB in (loss_RB, other_RB))
    return [
        Gain(name, int(number), one.estimate.count, loss, other, one.estimate.mean, one.interval, one.resolved)
        for name, number, one, loss, other in zip(names, number_R.tolist(), compared, *losses, strict=True)
    ]
