"""The frontier: loss against what it costs, and which variants are not dominated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from switch_lm.pages.document import Picture
from switch_lm.report.groups import Variant
from switch_lm.report.series import INTERVAL, series_of
from switch_lm.report.statistics import Estimate, pareto
from switch_lm.report.study import LOSS, TRAIN_CAPACITY, Study

LOSS_WORDS = {LOSS: "dropless loss", TRAIN_CAPACITY: "loss at the training capacity"}
FAR = 3.0  # costs that lie further apart are shown by their ratios


@dataclass(frozen=True)
class Axis:
    """A cost: the figure that holds it, as `scale` x it, or `scale` / it where a speed is given."""

    name: str
    heading: str
    loss: str
    figure: str
    scale: float = 1.0
    inverse: bool = False

    def cost(self, variant: Variant) -> float | None:
        value = variant.mean(self.figure)
        if value is None or (self.inverse and value == 0.0):
            return None
        return self.scale / value if self.inverse else self.scale * value


AXES = (
    Axis("training_computation", "Training computation (TFLOP)", LOSS, "computation.training", 1e-12),
    Axis("training_seconds", "Training time (s)", LOSS, "training_seconds"),
    Axis("parameters", "Parameters (millions)", LOSS, "parameters", 1e-6),
    Axis(
        "inference_computation",
        "Inference computation (MFLOP a token)",
        TRAIN_CAPACITY,
        "computation.inference_per_token",
        1e-6,
    ),
    Axis(
        "inference_time",
        "Inference time (microseconds a token)",
        TRAIN_CAPACITY,
        "inference_tokens_per_second",
        1e6,
        inverse=True,
    ),
    Axis("inference_parameters", "Parameters (millions), at capacity", TRAIN_CAPACITY, "parameters", 1e-6),
)


def places(axis: Axis, variants: Sequence[Variant]) -> list[tuple[Variant, float, Estimate]]:
    """The variants of which both coordinates are known."""
    found = [(variant, axis.cost(variant), variant.estimate(axis.loss)) for variant in variants]
    return [(variant, cost, loss) for variant, cost, loss in found if cost is not None and loss is not None]


def front(axis: Axis, variants: Sequence[Variant]) -> set[str]:
    """The labels of the Pareto set, by means."""
    known = places(axis, variants)
    marks = pareto([(cost, loss.mean) for _, cost, loss in known])
    return {variant.label for (variant, _, _), mark in zip(known, marks, strict=True) if mark}


def frontier_pictures(study: Study) -> list[Picture]:
    """One for each cost of which at least two variants are known."""
    return [_picture(axis, study) for axis in AXES if len(places(axis, study.variants)) >= 2]


def _picture(axis: Axis, study: Study) -> Picture:
    members = front(axis, study.variants)
    kinds: dict[str, list[tuple[Variant, float, Estimate]]] = {}
    for place in places(axis, study.variants):
        kinds.setdefault(_kind(place[0]), []).append(place)
    loss, heading = LOSS_WORDS[axis.loss], axis.heading.split(",")[0]
    costs = [cost for _, cost, _ in places(axis, study.variants)]
    note = f"{INTERVAL} Ringed: the Pareto set by means."
    if axis.figure == "computation.training":
        note += " Executed matrix products of forward and backward passes, without the optimizer's."
    names = ", ".join(variant.label for variant in study.variants if variant.label in members)
    return Picture(
        name=f"frontier_{axis.name}",
        title=f"{loss.capitalize()} against {heading[0].lower()}{heading[1:]}",
        alt=f"{loss.capitalize()} of each variant against its cost, {axis.heading}; not dominated: {names}.",
        x_label=heading,
        x_log=max(costs) >= FAR * min(costs) > 0.0,
        y_label=f"{loss} (nats)",
        series=tuple(
            series_of(
                kind,
                [(cost, loss) for _, cost, loss in found],
                labels=[variant.label for variant, _, _ in found],
                marked=[variant.label in members for variant, _, _ in found],
                line=False,
            )
            for kind, found in kinds.items()
        ),
        note=note,
    )


def _kind(variant: Variant) -> str:
    if variant.dense:
        return "dense"
    return "Switch" if variant.config["model.top_k"] == 1 else f"top-{variant.config['model.top_k']}"
