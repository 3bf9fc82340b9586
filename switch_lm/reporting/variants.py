"""Which runs repeat each other, what these variants are called, and which differ in a single key."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from switch_lm.config.families import FAMILIES
from switch_lm.config.rules import show
from switch_lm.reporting.keys import is_dense, is_ignored, is_of_router, is_routing
from switch_lm.reporting.records import DONE, Curves, Point, Record
from switch_lm.stats.intervals import Estimate, estimate

CAPACITY, ALPHA, EXPERTS = "model.capacity_factor", "alpha", "model.num_experts"
RESOLVED = {"trainer.device": "hardware.device", "trainer.precision": "hardware.precision"}  # `auto` says nothing
RANDOM_DROPS = "router.random_drop_rate"
FIRST = (EXPERTS, "model.switch_every", "model.d_ff", ALPHA, RANDOM_DROPS)  # in a label; other keys follow
APART = (*FIRST, "router.name", "router.top_k", CAPACITY)  # what a label states in its family, or in its own place
KEY_NAMES = {CAPACITY: "capacity factor", EXPERTS: "experts", RANDOM_DROPS: "random drops"}
FAMILY_NAMES = {"switch": "Switch", "topk": "top-{top_k}"}


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
    def capacity_factor(self) -> float | None:
        return self.config[CAPACITY]

    @property
    def random(self) -> bool:
        return self.config.get("router.name") == "uniform"  # experts drawn at random

    @property
    def drops(self) -> bool:
        return not self.dense and self.config.get("router.name") != "expert_choice"

    @property
    def dropless(self) -> bool:
        return not self.dense and self.capacity_factor is None

    @property
    def validations(self) -> dict[int | None, tuple[Point, ...]]:
        return {seed: curves.validations for seed, curves in self.curves.items()}

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

    def by_known_seed(self, key: str) -> dict[int, float]:
        return {seed: value for seed, value in self.by_seed(key).items() if seed is not None}

    @property
    def seeds(self) -> int:
        """How many have a loss."""
        return len(self.by_seed("val_loss"))

    def estimate(self, key: str) -> Estimate | None:
        return self.over_seeds(list(self.by_seed(key).values()))

    def over_seeds(self, values: Sequence[float]) -> Estimate | None:
        """The mean; without an interval for trials of a search, which were chosen by their results."""
        result = estimate(values)
        return Estimate(result.mean, result.count) if result and self.searched else result

    @property
    def searched(self) -> bool:
        return any(run.searched for run in self.runs)

    def mean(self, key: str) -> float | None:
        result = self.estimate(key)
        return None if result is None else result.mean

    def level(self, key: str) -> float:
        """Where it stands on a ladder of this key; no limit is the highest capacity factor."""
        value = self.config[key]
        return math.inf if value is None else float(value)

    def shown(self, key: str) -> str:
        return "dropless" if key == CAPACITY and self.config[key] is None else show(self.config[key])


def group(records: Iterable[Record]) -> tuple[Variant, ...]:
    """The variants of all runs with a result, in the order of the paper's Table 1."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        if record.status == DONE and record.config and record.figure("val_loss") is not None:
            alone = record.folder if record.seed is None else None
            groups.setdefault((frozen(comparable(record)), alone), []).append(record)
    configs = [comparable(runs[0]) for runs in groups.values()]
    variants = [
        Variant(label, model, config, tuple(runs))
        for (label, model), config, runs in zip(labels(configs), configs, groups.values(), strict=True)
    ]
    return tuple(sorted(variants, key=_place))


def comparable(record: Record) -> dict[str, Any]:
    """The configuration as far as it changes what is computed, with what is validated and the device that was used.

    A run of unknown seed is a variant of its own: it may repeat any other run, so it is no further sample.
    """
    flat = {key: value for key, value in record.config.items() if not is_ignored(key)}
    flat |= {key: record.result[used] for key, used in RESOLVED.items() if record.result.get(used) is not None}
    if (validated := record.result.get("validation_sha256")) is not None:
        flat |= {"data.path": None, "data.split": None, "data.hold_out": None, "text": str(validated)}
    elif (text := record.result.get("corpus_sha256")) is not None:  # of an older run
        flat |= {"data.path": None, "text": str(text)}
    if record.seed is None:
        flat["seed"] = f"unknown ({record.name})"
    if is_dense(record.config):
        shared = {key: value for key, value in flat.items() if not is_of_router(key)}
        return shared | {key: None for key in shared if is_routing(key)} | {"model.switch_every": 0}
    if (layers := flat.get("model.switch_layers")) is not None:
        flat |= _same_layers(layers, flat["model.num_layers"])
    return flat


def _same_layers(layers: list[int], num_layers: int) -> dict[str, Any]:
    """The keys that state which blocks have a Switch layer, as `switch_every` where one gives the same blocks."""
    for every in range(1, num_layers + 1):
        if layers == list(range(every - 1, num_layers, every)):
            return {"model.switch_layers": None, "model.switch_every": every}
    return {"model.switch_layers": layers, "model.switch_every": None}


def ladders(variants: Iterable[Variant], key: str) -> list[tuple[Variant, ...]]:
    """The sparse variants that are equal in all but `key`, two or more in each ladder, the lowest value first."""
    groups: dict[object, list[Variant]] = {}
    for variant in variants:
        if not variant.dense:
            groups.setdefault(frozen(variant.config, without=(key,)), []).append(variant)
    return [tuple(sorted(rungs, key=lambda rung: rung.level(key))) for rungs in groups.values() if len(rungs) > 1]


def pairs(ladder: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Each rung with the next one, then the two ends."""
    ends = [(ladder[0], ladder[-1])] if len(ladder) > 2 else []
    return [*pairwise(ladder), *ends]


def frozen(config: Mapping[str, Any], without: Collection[str] = ()) -> object:
    """What is equal for equal configurations, but for the keys of `without`."""
    return tuple(sorted((key, repr(value)) for key, value in config.items() if key not in without))


def _place(variant: Variant) -> tuple[Any, ...]:
    """Dense ones by width, then from no limit down to the smallest capacity factor."""
    config = variant.config
    if variant.dense:
        return 0, config["model.d_ff"], 0.0, 0, variant.label
    return 1, -variant.level(CAPACITY), config[EXPERTS], -config["router.top_k"], config[ALPHA], variant.label


def labels(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names of the variants of one report, by what they differ in: each in full, and without its capacity factor."""
    sparse = [config for config in configs if config["model.switch_every"] != 0]
    keys = sorted({key for config in configs for key in config})
    pools = {key: sparse if is_routing(key) else configs for key in keys}
    differing = [key for key, pool in pools.items() if len({repr(c.get(key)) for c in pool if _may_have(c, key)}) > 1]
    widths = {config["model.d_ff"] for config in sparse}
    usual = {"model.switch_every": 0, "model.d_ff": widths.pop() if len(widths) == 1 else None, RANDOM_DROPS: 0.0}
    stated = [key for key in FIRST if key in (*differing, RANDOM_DROPS)] + [k for k in differing if k not in APART]
    several = len({family(config) for config in configs}) > 1
    usual["balance.name"] = "loss" if several else None
    names = []
    for config in configs:
        parts = [_part(key, config[key]) for key in stated if config.get(key) not in (None, usual.get(key))]
        dense, factor = config["model.switch_every"] == 0, []
        if not dense and (CAPACITY in differing or (not parts and len(sparse) == 1)):
            factor = ["dropless" if config[CAPACITY] is None else f"factor {show(config[CAPACITY])}"]
        start = [family(config)] if dense or several or factor or not parts else []
        names.append((", ".join([*start, *factor, *parts]), ", ".join([*start, *parts])))
    return names


def _may_have(config: Mapping[str, Any], key: str) -> bool:
    """Whether it could state the key: one that its router or optimizer does not know is no difference."""
    return key in config or key.partition(".")[0] not in FAMILIES


def family(config: Mapping[str, Any]) -> str:
    """What the variants of one colour have in common: dense, or the router: Switch, top-2, and others by name."""
    if config["model.switch_every"] == 0:
        return "dense"
    name, several = str(config["router.name"]), config["router.top_k"] > 1
    return FAMILY_NAMES.get(name, name + " top-{top_k}" * several).format(top_k=config["router.top_k"])


def _part(key: str, value: object) -> str:
    match key:
        case "model.num_experts":
            return "1 expert" if value == 1 else f"{value} experts"
        case "model.switch_every":
            return "every block" if value == 1 else f"every {value} blocks"
        case "router.random_drop_rate":
            return f"random drops {show(value)}"
        case "balance.name":
            return {"none": "no balancing", "loss": "balance loss"}.get(str(value), f"{value} balance")
        case "text":
            return f"text {str(value)[:6]}"
    return f"{short(key)} {show(value)}".replace("`", "'")


def short(key: str) -> str:
    """A key in words, or without the group that it is in, where that says little."""
    return KEY_NAMES.get(key) or re.sub(r"^(model|router|trainer)[.]", "", key)
