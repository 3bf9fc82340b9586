"""What the loss of each variant costs, and which ones no other beats in both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from switch_lm.reporting.controls import LOSS, TRAIN_CAPACITY, TRAINING, machines
from switch_lm.reporting.variants import Variant
from switch_lm.stats.intervals import Estimate

PER_TOKEN = "computation.inference_per_token"
SECONDS, SPEED = "training_seconds", "inference_tokens_per_second"
MEGA, TERA = 1e-6, 1e-12


@dataclass(frozen=True)
class Axis:
    """A cost: the figure that holds it, as `scale` x it, or `scale` / it where a speed is given."""

    name: str
    heading: str
    loss: str
    figure: str
    scale: float = 1.0
    inverse: bool = False

    @property
    def timed(self) -> bool:
        """Whether it depends on the machine."""
        return self.figure in (SECONDS, SPEED)

    def cost(self, variant: Variant) -> float | None:
        value = None if self.timed and len(machines(variant)) > 1 else variant.mean(self.figure)
        return None if value is None else self.of(value)

    def of(self, value: float) -> float | None:
        """The cost from the figure."""
        return (self.scale / value if value else None) if self.inverse else self.scale * value

    def places(self, variants: Iterable[Variant]) -> list[tuple[Variant, float, Estimate]]:
        """The variants of which both the cost and the loss are known."""
        pairs = [(variant, self.cost(variant), variant.estimate(self.loss)) for variant in variants]
        return [(variant, cost, loss) for variant, cost, loss in pairs if cost is not None and loss is not None]

    def front(self, variants: Iterable[Variant]) -> set[str]:
        """The labels of the Pareto set, by means; of times none where there are several machines."""
        known = self.places(variants)
        if self.timed and len(machines(*(variant for variant, _, _ in known))) > 1:
            return set()
        marks = pareto([(cost, loss.mean) for _, cost, loss in known])
        return {variant.label for (variant, _, _), mark in zip(known, marks, strict=True) if mark}


AXES = (
    Axis("training_computation", "Training computation (TFLOP)", LOSS, TRAINING, TERA),
    Axis("training_seconds", "Training time (s)", LOSS, SECONDS),
    Axis("parameters", "Parameters (millions)", LOSS, "parameters", MEGA),
    Axis("inference_computation", "Inference computation (MFLOP per token)", TRAIN_CAPACITY, PER_TOKEN, MEGA),
    Axis("inference_time", "Inference time (microseconds per token)", TRAIN_CAPACITY, SPEED, 1e6, inverse=True),
    Axis("inference_parameters", "Parameters (millions), at capacity", TRAIN_CAPACITY, "parameters", MEGA),
)


def pareto(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """For each point, whether no other is at least as low in both coordinates and lower in one."""
    return tuple(
        not any(x <= own_x and y <= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points
    )
