"""Which runs are repetitions of each other: variants, whose runs differ in nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from switch_lm.report.curves import Curves
from switch_lm.report.keys import is_dense, is_ignored, is_routing
from switch_lm.report.labels import labels
from switch_lm.report.records import DONE, Record
from switch_lm.report.statistics import Crossing, Estimate, crossing, estimate

RESOLVED = {"trainer.device": "hardware.device", "trainer.precision": "hardware.precision"}  # `auto` says nothing


@dataclass(frozen=True)
class Variant:
    """Finished runs that differ in the seed alone. `config` is what they share; a dense one has no routing keys."""

    label: str
    model: str  # the label without its capacity factor
    config: Mapping[str, Any]
    runs: tuple[Record, ...]

    @property
    def dense(self) -> bool:
        return self.config["model.switch_every"] == 0

    @property
    def capacity_factor(self) -> float | None:
        return self.config["model.capacity_factor"]

    @property
    def dropless(self) -> bool:
        return not self.dense and self.capacity_factor is None

    def by_seed(self, key: str) -> dict[int | str, float]:
        """A figure of the results by seed; runs that repeat a seed are averaged, since they are no further sample.

        A run of unknown seed repeats no other: it stands under its own name.
        """
        found: dict[int | str, list[float]] = {}
        for run in self.runs:
            if (value := run.figure(key)) is not None:
                found.setdefault(run.sample, []).append(value)
        return {seed: fmean(values) for seed, values in found.items()}

    def estimate(self, key: str) -> Estimate | None:
        return estimate(list(self.by_seed(key).values()))

    def mean(self, key: str) -> float | None:
        values = self.by_seed(key).values()
        return fmean(values) if values else None

    def crossings(self, threshold: float) -> dict[int | str, Crossing | None]:
        """When each seed with a learning curve reached the threshold; of a repeated seed the first run."""
        found: dict[int | str, Crossing | None] = {}
        for run in self.runs:
            if run.curves.validations:
                found.setdefault(run.sample, crossing(run.curves.validations, threshold))
        return found

    @property
    def curves(self) -> list[Curves]:
        """One for each seed that has any."""
        return list({run.sample: run.curves for run in reversed(self.runs) if run.curves.validations}.values())


def group(records: Iterable[Record]) -> tuple[Variant, ...]:
    """The variants of all runs with a result, in the order of the paper's Table 1."""
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    configs = []
    for record in records:
        if record.status == DONE and record.config and record.figure("val_loss") is not None:
            config = comparable(record)
            key = tuple(sorted((key, repr(value)) for key, value in config.items()))
            if key not in groups:
                configs.append(config)
            groups.setdefault(key, []).append(record)
    named = labels(configs)
    variants = [
        Variant(name.label, name.model, config, tuple(runs))
        for name, config, runs in zip(named, configs, groups.values(), strict=True)
    ]
    return tuple(sorted(variants, key=_place))


def comparable(record: Record) -> dict[str, Any]:
    """The configuration as far as it changes what is computed, with the text's hash and the device as found."""
    flat = {key: value for key, value in record.config.items() if not is_ignored(key)}
    flat |= {key: record.result[found] for key, found in RESOLVED.items() if record.result.get(found) is not None}
    if (text := record.result.get("corpus_sha256")) is not None:
        flat |= {"data.path": None, "text": str(text)}
    if is_dense(record.config):
        flat |= {key: None for key in flat if is_routing(key)} | {"model.switch_every": 0}
    return flat


def _place(variant: Variant) -> tuple[Any, ...]:
    """Dense ones by width, then from no limit down to the smallest capacity factor."""
    config = variant.config
    if variant.dense:
        return 0, config["model.d_ff"], 0.0, 0, variant.label
    factor = variant.capacity_factor
    return (
        1,
        -math.inf if factor is None else -factor,
        config["model.num_experts"],
        -config["model.top_k"],
        config["alpha"],
        variant.label,
    )
