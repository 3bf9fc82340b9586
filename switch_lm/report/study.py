"""All that is known before anything is said: records, their variants, and the threshold that they race to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from switch_lm.report.controls import control_of
from switch_lm.report.groups import Variant, group
from switch_lm.report.records import DONE, Record
from switch_lm.report.statistics import Crossing, crossing

LOSS, TRAIN_CAPACITY = "val_loss", "val_loss_train_capacity"


@dataclass(frozen=True)
class Threshold:
    """The loss to which steps and seconds are counted; `origin` says where it comes from."""

    loss: float
    origin: str

    @property
    def shown(self) -> str:
        return f"{self.loss:.4f}".rstrip("0").rstrip(".")

    def crossed(self, run: Record) -> Crossing | None:
        """When this run reached it."""
        return crossing(run.curves.validations, self.loss)


@dataclass(frozen=True)
class Study:
    """Runs, grouped. `threshold` is None where no run is finished."""

    records: tuple[Record, ...]
    variants: tuple[Variant, ...]
    threshold: Threshold | None

    @property
    def sparse(self) -> list[Variant]:
        return [variant for variant in self.variants if not variant.dense]

    @property
    def dense(self) -> list[Variant]:
        return [variant for variant in self.variants if variant.dense]

    @property
    def used(self) -> list[Record]:
        return [run for variant in self.variants for run in variant.runs]

    @property
    def not_done(self) -> list[Record]:
        return [record for record in self.records if record.status != DONE]

    def crossings(self, variant: Variant) -> dict[int | str, Crossing | None]:
        return {} if self.threshold is None else variant.crossings(self.threshold.loss)

    def label_of(self, record: Record) -> str:
        """Its variant's label; nothing for a run that is in none."""
        return next((v.label for v in self.variants if any(run is record for run in v.runs)), "")


def study(records: Sequence[Record], *, threshold: float | None = None) -> Study:
    variants = group(records)
    chosen = Threshold(threshold, "as asked for") if threshold is not None else _threshold(variants)
    return Study(tuple(records), variants, chosen)


def _threshold(variants: Sequence[Variant]) -> Threshold | None:
    """What every seed of the dense control of equal computation reaches, or without one every run; up to 0.01."""
    controls = [control for variant in variants if (control := control_of(variant, variants)) is not None]
    if controls:
        origin = f"the highest final loss of {controls[0].label}, the control of equal computation"
        return Threshold(_up(_highest(controls[:1])), f"{origin}, rounded up to 0.01")
    return Threshold(_up(_highest(variants)), "the highest final loss, rounded up to 0.01") if variants else None


def _highest(variants: Iterable[Variant]) -> float:
    """Of any seed, so that each of them has a time."""
    return max(loss for variant in variants for loss in variant.by_seed(LOSS).values())


def _up(loss: float) -> float:
    return math.ceil(round(loss * 100, 9)) / 100  # rounded first: 1.53 * 100 is 153.00000000000003
