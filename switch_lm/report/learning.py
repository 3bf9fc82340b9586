"""Learning curves: the loss by step and by seconds of training, mean over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from switch_lm.pages.document import Picture
from switch_lm.report.groups import Variant
from switch_lm.report.series import INTERVAL, series_of
from switch_lm.report.statistics import Estimate, Point, estimate
from switch_lm.report.study import Study

Places = list[tuple[float, Estimate]]


def curve_pictures(study: Study) -> list[Picture]:
    """Validation loss by step and by seconds, training loss by step; none without at least two points."""
    by_step = [(v, _by_step([_validations(one.validations) for one in v.curves])) for v in study.variants]
    by_time = [(v, _by_time([one.validations for one in v.curves])) for v in study.variants]
    training = [(v, _by_step([dict(one.training) for one in v.curves])) for v in study.variants]
    loss = "validation loss (nats)"
    drawn = [
        _curves("learning_by_step", "Validation loss by step", "step", loss, by_step),
        _curves("learning_by_seconds", "Validation loss by training seconds", "training seconds", loss, by_time),
        _curves("training_loss", "Training loss by step", "step", "training loss (nats)", training),
    ]
    return [picture for picture in drawn if picture is not None]


def _curves(
    name: str, title: str, x_label: str, y_label: str, found: Iterable[tuple[Variant, Places]]
) -> Picture | None:
    series = tuple(series_of(variant.label, places) for variant, places in found if len(places) >= 2)
    alt = f"{title}, a line for each of: {', '.join(one.label for one in series)}."
    note = f"Mean over seeds, at the steps that all of them have. {INTERVAL}"
    return Picture(name, title, alt, x_label, y_label, series, note=note) if series else None


def _validations(points: Iterable[Point]) -> dict[int, float]:
    return {point.step: point.loss for point in points}


def _shared(curves: Sequence[Mapping[int, object]]) -> list[int]:
    """The steps that all curves have, in order."""
    return sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []


def _by_step(curves: Sequence[Mapping[int, float]]) -> Places:
    found = [(float(step), estimate([curve[step] for curve in curves])) for step in _shared(curves)]
    return [(step, loss) for step, loss in found if loss is not None]


def _by_time(curves: Sequence[Sequence[Point]]) -> Places:
    """At the mean of the seconds that the seeds took to a step; no step of which a time is missing."""
    by_step = [{point.step: point for point in points if point.seconds is not None} for points in curves]
    losses = _by_step([{step: point.loss for step, point in one.items()} for one in by_step])
    return [(fmean(one[int(step)].seconds or 0.0 for one in by_step), loss) for step, loss in losses]
