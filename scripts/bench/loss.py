"""How many seconds after its start has the training command saved a model of a given validation loss?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.harness import Spread, paired
from bench.options import Options, say
from bench.rows import Row, at_most
from switch_lm.config.paths import config_dir
from switch_lm.storage import metrics

LOSSES = (1.88, 1.60, 1.50, 1.4697)
DEFAULT = "default"
# Seconds to a val/loss on two cores with AVX512-BF16, for the preset that should reach it first.
TARGETS = {
    ("short", 1.88): 45.0, (DEFAULT, 1.60): 120.0, (DEFAULT, 1.50): 300.0, ("wide", 1.4697): 1200.0,
}  # fmt: skip
# Switch over its dense control: steps, seconds of the whole command, and how much higher its last loss may be.
STEPS_TARGET, SECONDS_TARGET, LOSS_TARGET = 0.7, 0.9, 0.0
POLL_SECONDS = 0.1
NOTES = (
    "Whole processes, with imports, reading the text, compiling, validations and samples. Seconds from the start "
    "of `python -m switch_lm.train experiment=...` until a best.ckpt with val/loss at or below the target was written.",
    "Losses are val/loss: the whole validation split, nothing dropped. Repetitions are seeds.",
)


@dataclass(frozen=True)
class Outcome:
    """The result of one run: seconds to each target that it reached, best and last loss, all its steps and seconds."""

    reached: Mapping[float, float]
    best: float
    last: float
    steps: int
    seconds: float


class Saved(NamedTuple):
    """A version of best.ckpt: when it was written, and its val/loss."""

    when: float
    loss: float


def measure(options: Options) -> Iterator[Row]:
    if not options.experiments:
        say(f"loss: name one or more of {', '.join([DEFAULT, *recipes()])}")
    for experiment in options.experiments:
        outcomes: dict[str, list[Outcome]] = {name: [] for name in (options.control, experiment) if name is not None}
        for seed in range(options.repetitions):
            try:
                done = {name: run(name, seed, options.overrides) for name in outcomes}
            except (ChildProcessError, OSError) as error:
                yield Row(experiment, f"seed {seed}", error=str(error))
                continue
            for name, outcome in done.items():
                outcomes[name].append(outcome)
        if outcomes[experiment]:
            for name in outcomes:
                yield from rows(name, outcomes[name])
            if options.control is not None:
                yield from against(experiment, outcomes[experiment], options.control, outcomes[options.control])


def against(experiment: str, ours: Sequence[Outcome], control: str, theirs: Sequence[Outcome]) -> Iterator[Row]:
    """Switch beside its dense control, seed by seed."""
    case, higher = f"{experiment} against {control}", [a.last - b.last for a, b in zip(ours, theirs, strict=True)]
    steps = paired([o.steps for o in ours], [o.steps for o in theirs])
    seconds = paired([o.seconds for o in ours], [o.seconds for o in theirs])
    for name, figure, limit, unit in (
        ("steps", steps, STEPS_TARGET, " x"),
        ("seconds, whole command", seconds, SECONDS_TARGET, " x"),
        ("last val/loss, difference", Spread.of(higher), LOSS_TARGET, " nats"),
    ):
        facts = {"each": ", ".join(f"{value:+.4f}" for value in higher)} if unit == " nats" else {}
        yield Row(case, name, figure, unit, at_most(figure, limit, unit), facts)


def recipes() -> list[str]:
    """The experiments that are single runs, not sweeps."""
    files = sorted(Path(config_dir(), "experiment").glob("*.yaml"))
    return [file.stem for file in files if "sweeper:" not in file.read_text(encoding="utf-8")]


def rows(experiment: str, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    for target in LOSSES:
        seconds = [outcome.reached[target] for outcome in outcomes if target in outcome.reached]
        facts = {"seeds that reached it": f"{len(seconds)} of {len(outcomes)}"}
        if len(seconds) < len(outcomes):
            yield Row(experiment, f"to {target:g}", facts=facts)
            continue
        figure, limit = Spread.of(seconds), TARGETS.get((experiment, target))
        facts["each"] = ", ".join(f"{value:.0f}" for value in seconds)
        verdict = None if limit is None else at_most(figure, limit, " s")
        yield Row(experiment, f"to {target:g}", figure, " s", verdict, facts)
    best = [outcome.best for outcome in outcomes]
    yield Row(
        experiment, "best val/loss", Spread.of(best), " nats", facts={"each": ", ".join(f"{b:.4f}" for b in best)}
    )
    yield Row(experiment, "whole command", Spread.of([outcome.seconds for outcome in outcomes]), " s")


def run(experiment: str, seed: int, overrides: Sequence[str]) -> Outcome:
    """ChildProcessError with the end of its stderr if it fails."""
    say(f"loss: {experiment}, seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [] if experiment == DEFAULT else [f"experiment={experiment}"]
        given = (*chosen, f"seed={seed}", f"outputs={folder}", "name=timed", "logger.progress=none", *overrides)
        path, stderr, started = Path(folder, "runs", "timed"), Path(folder, "stderr.txt"), time.time()
        with stderr.open("wb") as errors:
            command = [sys.executable, "-m", "switch_lm.train", *given]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                saved = watch(process, path)
            finally:
                process.kill()  # after Ctrl-C; otherwise it has ended
                process.wait()
        seconds = time.time() - started
        if process.returncode != 0:
            raise ChildProcessError(" ".join(stderr.read_text(errors="replace").split())[-200:])
        return outcome(validations(path), saved, started, seconds)


def watch(process: subprocess.Popen[bytes], run: Path) -> list[Saved]:
    """The versions of best.ckpt until the process ended: only the last one stays.

    A validation's loss is logged before its checkpoint is written, and the best so far is that of the file.
    """
    saved: list[Saved] = []
    checkpoint = run / "checkpoints" / "best.ckpt"
    running = True
    while running:
        running = process.poll() is None
        if checkpoint.exists() and (modified := checkpoint.stat().st_mtime) not in [version.when for version in saved]:
            saved.append(Saved(modified, min(validations(run).values())))
        if running:
            time.sleep(POLL_SECONDS)
    return saved


def validations(run: Path) -> dict[int, float]:
    """The loss of each validation by step."""
    return metrics.series(metrics.read(run), "val/loss")


def outcome(losses: Mapping[int, float], saved: Sequence[Saved], started: float, seconds: float) -> Outcome:
    """A target is reached when a checkpoint of its loss is written."""
    first = {target: next((version.when for version in saved if version.loss <= target), None) for target in LOSSES}
    reached = {target: when - started for target, when in first.items() if when is not None}
    last = max(losses)
    return Outcome(reached, min(losses.values()), losses[last], last, seconds)
