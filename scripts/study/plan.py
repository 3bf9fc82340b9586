"""The study of `data=plays`: which runs, with which keys, and what is stored of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from study.lines import Lines

TUNING, RECIPES, SMALL, MEDIUM, WIDE = PARTS = ("tuning", "recipes", "width 64", "width 128", "wide")
TEXTS = {"tiny_shakespeare": "1.00 x the text", "plays": "4.58 x the text"}
SWITCH, DENSE = "switch", "dense"
MODELS = {SWITCH: "", DENSE: "model=dense"}  # the default recipe and its dense control
LEARNING_RATES, DROPOUTS = (0.015, 0.02, 0.03), (0.0, 0.1)  # what is tuned: `optim.matrix_lr`, `model.dropout`
SEEDS = 3
AVERAGES = ("0.99", "0.999", "tail_0.2")
DATA = Path("docs", "data", "plays_study.csv")
TIMES = Path("docs", "data", "plays_study.json")
OUTPUTS = Path("outputs", "plays_study")
# float32 on all machines, so that all runs can be compared; one validation, after the last step.
COMMON = (
    "logger=[]", "logger.progress=none", "logger.sample_length=0", "logger.per_expert=false", "trainer.precision=fp32",
)  # fmt: skip
LENGTHS, DENSE_LENGTHS = (1800, 3600), (900, 1800, 3600, 6500)  # steps of the recipes; of dense on `plays`, a curve
SMALL_EXPERTS, SMALL_STEPS, SMALL_LENGTHS = (4, 16, 64), 920, (920, 1460, 2320, 3680)
MEDIUM_EXPERTS, MEDIUM_STEPS = (16, 64), 1800  # beside the curve of dense that the recipes have
FIGURES = ("val_loss", "parameters", "active_parameters", "dropped", "training_seconds", "seconds")


@dataclass(frozen=True)
class Job:
    """A run. `overrides`: as typed, without text, seed and steps."""

    part: str
    model: str
    text: str
    overrides: str
    seed: int
    steps: int

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(map(str, (self.part, self.model, self.text, self.overrides, self.seed, self.steps)))

    @property
    def name(self) -> str:
        """Of its run."""
        return hashlib.sha256("\n".join(self.key).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return OUTPUTS / "runs" / self.name

    @property
    def label(self) -> str:
        return f"{self.part}: {self.model}, {self.text}, {self.steps} steps, seed {self.seed}, {self.overrides}"

    @property
    def keeps(self) -> bool:
        return self.seed == 0 and self.part in (RECIPES, WIDE)

    @property
    def words(self) -> list[str]:
        """Its command line: it continues what was stopped or killed."""
        own = [f"data={self.text}", *self.overrides.split(), f"seed={self.seed}", f"trainer.max_steps={self.steps}"]
        own += [f"trainer.val_every={self.steps}", f"optim.averages=[{','.join(AVERAGES)}]"]
        return [*own, *COMMON, f"name={self.name}", "resume=auto", f"outputs={OUTPUTS}"]

    def figures(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {name: result.get(name) for name in FIGURES} | {"averaged": json.dumps(result["val_loss_averaged"])}


class Results(Lines):
    """The lines of plays_study.csv: a run each."""

    KEY = ("part", "model", "text", "overrides", "seed", "steps")
    KIND = ("part", "model")
    COLUMNS = (*KEY, *FIGURES, "averaged", "commit", "machine", "torch")

    def losses(self, part: str, model: str, text: str, steps: int, average: str | None = None) -> dict[int, float]:
        """By seed; of the averaged weights with this name, if one is given."""
        own = [row for row in self.rows if (row["part"], row["model"], row["text"]) == (part, model, text)]
        own = [row for row in own if row["steps"] == str(steps)]
        return {int(row["seed"]): float(json.loads(row["averaged"])[average] if average else row["val_loss"])
                for row in own}  # fmt: skip


def jobs(results: Results) -> Iterator[Job]:
    """All runs in their order, as far as it is known: what was tuned must be finished before the recipes."""
    tuning = list(_tuning())
    yield from tuning
    if results.missing(tuning):
        return
    for seed, text, model in product(range(SEEDS), TEXTS, MODELS):
        for steps in DENSE_LENGTHS if (model, text) == (DENSE, "plays") else LENGTHS:
            yield Job(RECIPES, model, text, chosen(results, model, text), seed, steps)
    yield from _small()
    yield from _medium(results)
    regularised = f"experiment=wide {_dropout(chosen(results, SWITCH, 'plays'))}"
    yield Job(WIDE, SWITCH, "plays", regularised, 0, 5200)


def _tuning() -> Iterator[Job]:
    """600 steps of each model on each text; the standard validation text is in neither part of it."""
    for text, (model, words), rate, dropout in product(TEXTS, MODELS.items(), LEARNING_RATES, DROPOUTS):
        keys = _words(words, "data.split=tuning", f"optim.matrix_lr={rate}", f"model.dropout={dropout}")
        yield Job(TUNING, model, text, keys, 0, 600)


def chosen(results: Results, model: str, text: str) -> str:
    """The keys with the lowest loss on the end of the training text."""
    own = [row for row in results.rows if (row["part"], row["model"], row["text"]) == (TUNING, model, text)]
    best = min(own, key=lambda row: float(row["val_loss"]))
    return _words(*(word for word in best["overrides"].split() if word != "data.split=tuning"))


def _small() -> Iterator[Job]:
    """Width 64: `experiment=small` and its dense control, in their sizes and with their learning rates."""
    for seed, text in product(range(2), TEXTS):
        yield Job(SMALL, DENSE, text, "experiment=small_dense", seed, SMALL_STEPS)
        for experts in SMALL_EXPERTS:
            yield Job(SMALL, _sparse(experts), text, f"experiment=small model.num_experts={experts}", seed, SMALL_STEPS)
    for steps, text in product(SMALL_LENGTHS[1:], TEXTS):
        yield Job(SMALL, DENSE, text, "experiment=small_dense", 0, steps)


def _medium(results: Results) -> Iterator[Job]:
    """Width 128, as the default, on the longer text."""
    for experts in MEDIUM_EXPERTS:
        keys = _words(chosen(results, SWITCH, "plays"), f"model.num_experts={experts}")
        yield Job(MEDIUM, _sparse(experts), "plays", keys, 0, MEDIUM_STEPS)


def _sparse(experts: int) -> str:
    return f"{experts} experts"


def _words(*words: str) -> str:
    return " ".join(filter(None, words))


def _dropout(overrides: str) -> str:
    (word,) = (word for word in overrides.split() if word.startswith("model.dropout="))
    return word


def timed(results: Results) -> dict[str, str]:
    """The steps that are timed, by part, model and text: the keys of each."""
    own = (job for job in jobs(results) if job.part != TUNING)
    return {step_name(job.part, job.model, job.text): job.overrides for job in own}


def step_name(part: str, model: str, text: str) -> str:
    return f"{part}, {model}, {text}"


def by_length(results: Results, part: str, text: str, lengths: Iterable[int]) -> Mapping[int, dict[int, float]]:
    """The losses of dense by steps and seed, of those lengths that were run."""
    known = {steps: results.losses(part, DENSE, text, steps) for steps in lengths}
    return {steps: losses for steps, losses in known.items() if losses}
