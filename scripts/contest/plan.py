"""What plays in the router league, with which seeds and for how many steps, and what is stored of each run."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from study.lines import Lines

from switch_lm.reporting.records import read_curves
from switch_lm.stats.contrasts import Pool
from switch_lm.stats.corrections import planned
from switch_lm.storage import metrics
from switch_lm.storage.files import as_json, replace_text

POWER, TABLE, DENSE_CURVE = PARTS = ("power", "table", "dense curve")
POWER_SEEDS, COMPARED, TAIL = 100, 4, 0.1  # the first seed; pairs of the headline; the last tenth of the steps
OUTPUTS = Path("outputs", "league")
AT = " at capacity factor "  # in the name of a result of the second table
KEPT = re.compile(r"moe/layer_(\d+)/kept/expert_\d+")
KEY = ("part", "variant", "capacity_factor", "seed", "steps")
FIGURES = (
    "val_loss", "val_loss_train_capacity", "dropped", "dropped_whole_run", "load_max_over_mean", "router_entropy",
    "experts_per_token", "training_seconds", "seconds", "parameters", "active_parameters",
)  # fmt: skip
COLUMNS = (*KEY, *FIGURES, "commit", "machine", "torch", "text_sha256")


@dataclass(frozen=True)
class Entry:
    """A file of configs/variant, and its class: about so many experts per token."""

    label: str
    variant: str
    experts: int = 1
    limited: bool = False  # whether a capacity factor limits it: it is in the second table, too


SWITCH = Entry("switch", "switch_dropless", limited=True)
QUANTILE = Entry("switch, quantile", "switch_quantile")  # balanced as frozen is
HASH, FROZEN = Entry("hash", "hash", limited=True), Entry("frozen", "frozen", limited=True)
UNIFORM, DENSE = Entry("uniform", "uniform", limited=True), Entry("dense", "dense")
TOP2, DENSE2 = Entry("top-2", "top2_dropless", 2, limited=True), Entry("dense, d_ff doubled", "dense_double", 2)
ENTRIES = (
    SWITCH,
    QUANTILE,
    Entry("sigmoid", "sigmoid_top1", limited=True),
    HASH,
    FROZEN,
    UNIFORM,
    Entry("expert choice, factor 1", "expert_choice_1.0"),
    Entry("threshold, 1 expert", "threshold_top1"),
    Entry("sigmoid, quantile", "sigmoid_quantile"),
    DENSE,
    TOP2,
    Entry("sigmoid, top-2", "sigmoid_top2", 2, limited=True),
    Entry("expert choice, factor 2", "expert_choice_2.0", 2),
    Entry("threshold, 2 experts", "threshold_top2", 2),
    DENSE2,
)
FACTORS = {1: 1.25, 2: 2.5}  # of the second table, by class: as much room for each choice


@dataclass(frozen=True)
class Job:
    """A run: `capacity_factor` is that of the second table, None in all others."""

    part: str
    variant: str
    capacity_factor: float | None
    seed: int
    steps: int
    outputs: Path = OUTPUTS

    @property
    def key(self) -> tuple[str, ...]:
        """As it stands in the file of results."""
        return tuple("" if (value := getattr(self, name)) is None else str(value) for name in KEY)

    @property
    def label(self) -> str:
        limit = "" if self.capacity_factor is None else f", capacity factor {self.capacity_factor}"
        return f"{self.part}: {self.variant}{limit}, seed {self.seed}, {self.steps} steps"

    @property
    def name(self) -> str:
        """Of its run."""
        limit = "" if self.capacity_factor is None else f"_cap{self.capacity_factor}"
        return f"{self.part.replace(' ', '_')}_{self.variant}{limit}_seed{self.seed}_{self.steps}"

    @property
    def folder(self) -> Path:
        return self.outputs / "runs" / self.name

    @property
    def words(self) -> list[str]:
        """Its command line: it continues what was stopped or killed."""
        limit = [] if self.capacity_factor is None else [f"model.capacity_factor={self.capacity_factor}"]
        own = [f"variant={self.variant}", *limit, f"seed={self.seed}", f"trainer.max_steps={self.steps}"]
        single = ["hydra.mode=RUN", "logger.progress=none", f"name={self.name}", "resume=auto"]
        return ["experiment=league", *own, *single, f"outputs={self.outputs}"]

    @property
    def keeps(self) -> bool:
        return self.part == TABLE and self.seed == 0  # what is measured afterwards

    def figures(self, result: Mapping[str, Any]) -> dict[str, Any]:
        logged, tokens = metrics.read(self.folder), result["computation"]["tokens_per_step"]
        return {name: result.get(name) for name in FIGURES} | {
            "dropped": read_curves(self.folder).tail_dropped(self.steps),
            "experts_per_token": computed_per_token(logged, after=(1 - TAIL) * self.steps, tokens=tokens),
            "text_sha256": result["corpus_sha256"],
        }


@dataclass(frozen=True)
class League:
    """`data`: where results are stored, `page`: the report, `outputs`: the runs themselves."""

    steps: int = 400
    seeds: int = 5
    lengths: tuple[float, ...] = (0.35, 0.5, 0.7, 1.4, 2.0)  # of the dense curve, times the steps; 1 is in the table
    repetitions: int = 30  # of each time that is measured
    rehearsal: bool = False  # then the steps are not doubled
    examined: tuple[str, ...] = ()  # the variants whose routing is looked at one by one; empty: all
    data: Path = Path("docs", "data")
    page: Path = Path("docs", "routers.md")
    outputs: Path = OUTPUTS

    @property
    def csv(self) -> Path:
        return self.data / "league.csv"

    @property
    def stages(self) -> Path:
        return self.data / "league.json"

    def jobs(self, part: str, steps: int) -> list[Job]:
        """All of a part, seed by seed."""
        seeds = range(self.seeds)
        known: list[tuple[Entry, float | None, int, int]]
        if part == POWER:
            known = [(one, None, POWER_SEEDS + seed, self.steps) for seed in seeds for one in (SWITCH, FROZEN)]
        elif part == DENSE_CURVE:
            known = [(DENSE, None, seed, round(share * steps)) for seed in seeds for share in self.lengths]
        else:
            limited = [(one, FACTORS[one.experts]) for one in ENTRIES if one.limited]
            known = [(one, None, seed, steps) for seed in seeds for one in ENTRIES]
            known += [(one, factor, seed, steps) for seed in seeds for one, factor in limited]
        return [Job(part, one.variant, factor, seed, steps, self.outputs) for one, factor, seed, steps in known]


QUICK = League(
    steps=20, seeds=2, lengths=(0.5, 1.5), repetitions=5, rehearsal=True, outputs=Path("outputs", "league_quick"),
    examined=("switch_dropless", "expert_choice_1.0", "threshold_top1"), data=Path("outputs", "league_quick"),
    page=Path("outputs", "league_quick", "routers.md"),
)  # fmt: skip


@dataclass(frozen=True)
class Results(Lines):
    """The lines of league.csv: a run each."""

    KEY, COLUMNS, KIND = KEY, COLUMNS, ("variant",)

    def by_seed(
        self, figure: str, part: str, variant: str, steps: int, factor: float | None = None
    ) -> dict[int, float]:
        """One figure of the runs that have it."""
        key = Job(part, variant, factor, 0, steps).key
        own = [row for row in self.rows if (row["part"], row["variant"], row["capacity_factor"]) == key[:3]]
        return {int(row["seed"]): float(row[figure]) for row in own if row["steps"] == key[4] and row[figure]}


def computed_per_token(logged: Iterable[Mapping[str, Any]], *, after: float, tokens: int) -> float | None:
    """Assignments that experts computed per token of a layer, the mean over what was logged after a step."""
    means = []
    for row in logged:
        by_layer: dict[str, float] = defaultdict(float)
        for tag, value in row.items():
            if (match := KEPT.fullmatch(tag)) and row["step"] > after:
                by_layer[match[1]] += value
        if by_layer:
            means.append(fmean(by_layer.values()) / tokens)
    return fmean(means) if means else None


@dataclass(frozen=True)
class Power:
    """What the runs that are in no table say of how many steps are needed."""

    difference: float  # switch less frozen, nats
    deviation: float  # of a run
    resolved: float  # the difference that the table's seeds resolve in 80% of leagues

    @property
    def doubles(self) -> bool:
        """Whether the difference is below what is resolved."""
        return abs(self.difference) < self.resolved


def power(results: Results, league: League) -> Power | None:
    """None until all of its runs are finished."""
    if results.missing(league.jobs(POWER, league.steps)):
        return None
    names = SWITCH.variant, FROZEN.variant
    pool = Pool({name: results.by_seed("val_loss", POWER, name, league.steps) for name in names})
    deviation = pool.least_squares.deviation
    resolved = planned(COMPARED, league.seeds, deviation)
    return Power(pool.difference(names).mean, deviation, resolved or 0.0)


def steps_of(results: Results, league: League) -> int | None:
    """Of the tables: doubled, once, if the power asks for it; None until it is known."""
    if (known := power(results, league)) is None:
        return None
    return league.steps * (2 if known.doubles and not league.rehearsal else 1)


def first_runs(league: League, steps: int) -> Iterator[tuple[str, Job]]:
    """Of seed 0: those of the tables that are measured afterwards, by the name of their results."""
    yield from ((name_of(job.variant, job.capacity_factor), job) for job in league.jobs(TABLE, steps) if job.seed == 0)


def name_of(variant: str, factor: float | None) -> str:
    return variant if factor is None else f"{variant}{AT}{factor}"


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """What each stage has measured so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def store(path: Path, stages: Mapping[str, Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, as_json(stages))
