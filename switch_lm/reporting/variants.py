"""Which runs repeat each other, what these variants are called, and which differ in a single key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from switch_lm.config.rules import show
from switch_lm.reporting.keys import is_dense, is_ignored, is_routing
from switch_lm.reporting.records import DONE, Curves, Record
from switch_lm.stats.intervals import Estimate, estimate

CAPACITY, ALPHA, EXPERTS = "model.capacity_factor", "alpha", "model.num_experts"
RESOLVED = {"trainer.device": "hardware.device", "trainer.precision": "hardware.precision"}  # `auto` says nothing
# Keys that a label states in its family, or in words of its own.
WORDED = ("model.switch_every", "model.top_k", CAPACITY, "model.d_ff", EXPERTS, "model.random_drop_rate", ALPHA)


@dataclass(frozen=True, eq=False)
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
    def family(self) -> str:
        return _family(self.config)

    @property
    def capacity_factor(self) -> float | None:
        return self.config[CAPACITY]

    @property
    def dropless(self) -> bool:
        return not self.dense and self.capacity_factor is None

    @property
    def curves(self) -> dict[int | None, Curves]:
        """By seed, of those that have any; of a repeated seed the first run's."""
        return {run.seed: run.curves for run in reversed(self.runs) if run.curves.validations}

    def by_seed(self, key: str) -> dict[int | None, float]:
        """A figure of the results by seed; runs that repeat a seed are averaged, since they are no further sample."""
        values: dict[int | None, list[float]] = {}
        for run in self.runs:
            if (value := run.figure(key)) is not None:
                values.setdefault(run.seed, []).append(value)
        return {seed: fmean(repeats) for seed, repeats in values.items()}

    def estimate(self, key: str) -> Estimate | None:
        return estimate(list(self.by_seed(key).values()))

    def mean(self, key: str) -> float | None:
        result = self.estimate(key)
        return None if result is None else result.mean


@dataclass(frozen=True)
class Ladder:
    """Two or more variants that are equal in all but `key`, the lowest value first; no limit is the highest factor."""

    key: str
    rungs: tuple[Variant, ...]

    def value(self, variant: Variant) -> float:
        value = variant.config[self.key]
        return math.inf if value is None else float(value)

    def shown(self, variant: Variant) -> str:
        value = variant.config[self.key]
        return "dropless" if value is None else show(value)

    @property
    def pairs(self) -> list[tuple[Variant, Variant]]:
        """Each rung with the next one, then the two ends."""
        ends = [(self.rungs[0], self.rungs[-1])] if len(self.rungs) > 2 else []
        return [*zip(self.rungs, self.rungs[1:], strict=False), *ends]


def group(records: Iterable[Record]) -> tuple[Variant, ...]:
    """The variants of all runs with a result, in the order of the paper's Table 1."""
    groups: dict[object, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        if record.status == DONE and record.config and record.figure("val_loss") is not None:
            config = comparable(record)
            alone = record.folder if record.seed is None else None
            groups.setdefault((_frozen(config), alone), (config, []))[1].append(record)
    names = labels([config for config, _ in groups.values()])
    variants = [
        Variant(label, model, config, tuple(runs))
        for (label, model), (config, runs) in zip(names, groups.values(), strict=True)
    ]
    return tuple(sorted(variants, key=_place))


def comparable(record: Record) -> dict[str, Any]:
    """The configuration as far as it changes what is computed, with the text's hash and the device as found.

    A run of unknown seed is a variant of its own: it may repeat any other run, so it is no further sample.
    """
    flat = {key: value for key, value in record.config.items() if not is_ignored(key)}
    flat |= {key: record.result[found] for key, found in RESOLVED.items() if record.result.get(found) is not None}
    if (text := record.result.get("corpus_sha256")) is not None:
        flat |= {"data.path": None, "text": str(text)}
    if record.seed is None:
        flat["seed"] = f"unknown ({record.name})"
    if is_dense(record.config):
        flat |= {key: None for key in flat if is_routing(key)} | {"model.switch_every": 0}
    return flat


def ladders(variants: Iterable[Variant], key: str) -> list[Ladder]:
    groups: dict[object, list[Variant]] = {}
    for variant in variants:
        if not variant.dense:
            groups.setdefault(_frozen(variant.config, without=key), []).append(variant)
    unsorted = [Ladder(key, tuple(rungs)) for rungs in groups.values() if len(rungs) > 1]
    return [Ladder(key, tuple(sorted(ladder.rungs, key=ladder.value))) for ladder in unsorted]


def _frozen(config: Mapping[str, Any], without: str = "") -> object:
    return tuple(sorted((key, repr(value)) for key, value in config.items() if key != without))


def _place(variant: Variant) -> tuple[Any, ...]:
    """Dense ones by width, then from no limit down to the smallest capacity factor."""
    config, factor = variant.config, variant.capacity_factor
    if variant.dense:
        return 0, config["model.d_ff"], 0.0, 0, variant.label
    highest_first = -math.inf if factor is None else -factor
    return 1, highest_first, config[EXPERTS], -config["model.top_k"], config[ALPHA], variant.label


def labels(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names of the variants of one report, by what they differ in: each in full, and without its capacity factor."""
    sparse = [config for config in configs if config["model.switch_every"] != 0]
    keys = sorted({key for config in configs for key in config})
    differing = [k for k in keys if len({repr(c.get(k)) for c in (sparse if is_routing(k) else configs)}) > 1]
    widths = {config["model.d_ff"] for config in sparse}
    usual_width = widths.pop() if len(widths) == 1 else None
    several = len({_family(config) for config in configs}) > 1
    names = []
    for config in configs:
        dense, parts = config["model.switch_every"] == 0, _parts(config, differing, usual_width)
        factor = [] if dense or (CAPACITY not in differing and (parts or len(sparse) > 1)) else [_capacity(config)]
        family = [_family(config)] if dense or several or factor or not parts else []
        names.append((", ".join([*family, *factor, *parts]), ", ".join([*family, *parts])))
    return names


def _family(config: Mapping[str, Any]) -> str:
    if config["model.switch_every"] == 0:
        return "dense"
    return "Switch" if config["model.top_k"] == 1 else f"top-{config['model.top_k']}"


def _capacity(config: Mapping[str, Any]) -> str:
    return "dropless" if config[CAPACITY] is None else f"factor {show(config[CAPACITY])}"


def _parts(config: Mapping[str, Any], differing: Sequence[str], usual_width: int | None) -> list[str]:
    experts, every, parts = config[EXPERTS], config["model.switch_every"], []
    sparse_differing = differing if every != 0 else ()
    if EXPERTS in sparse_differing:
        parts.append("1 expert" if experts == 1 else f"{experts} experts")
    if "model.switch_every" in sparse_differing:
        parts.append("every block" if every == 1 else f"every {every} blocks")
    if "model.d_ff" in differing and config["model.d_ff"] != usual_width:
        parts.append(f"d_ff {config['model.d_ff']}")
    if ALPHA in sparse_differing:
        parts.append(f"alpha {show(config[ALPHA])}")
    if config.get("model.random_drop_rate"):
        parts.append(f"random drops {show(config['model.random_drop_rate'])}")
    others = [key for key in differing if key not in WORDED and config.get(key) is not None]
    return parts + [_other(key, config[key]) for key in others]


def _other(key: str, value: object) -> str:
    if key == "text":
        return f"text {str(value)[:6]}"
    return f"{key.removeprefix('model.').removeprefix('trainer.')} {show(value)}".replace("`", "'")
