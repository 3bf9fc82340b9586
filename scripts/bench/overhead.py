"""What do logging and the framework add to a training step, and how long do commands take to start?"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from bench import ours, start
from bench.harness import Spread, median_interval
from bench.options import Options, say
from bench.probe import Probe
from bench.rows import Row, at_most
from switch_lm import run_folder
from switch_lm.callbacks import Clock
from switch_lm.settings import Config
from switch_lm.signals import StopSignals
from switch_lm.training import Training
from switch_lm.writing import generate

CASE, APART = "overhead of a step", "apart from steps"
BLOCK, QUICK_BLOCK, PAIRS = 20, 10, 50
LOGGING_TARGET, FRAMEWORK_TARGET = 1.02, 1.03
NOTES = (
    f"Overhead: one process, one model and one optimizer, in turn a block of {BLOCK} steps of the default run with its "
    "logging, one without, and one of a bare loop (losses, backward, clipping, optimizer); at least "
    f"{PAIRS} of each. Figures are medians of paired ratios with their 95 % interval (by order statistics, in place of "
    "quartiles). A checkpoint falls into every fifth block, of which a median shows little: the mean stands beside it.",
    "The framework is Lightning with the progress bar and checkpoints, without logging; the bar is drawn to a terminal "
    "that throws it away. Garbage is collected as ever.",
    f"Quick: blocks of {QUICK_BLOCK} steps of 16 rows, not compiled; no target is judged, since steps are shorter.",
    *start.NOTES,
)


def measure(options: Options) -> Iterator[Row]:
    if options.wants(CASE) or options.wants(APART):
        yield from of_a_step(options)
    yield from start.measure(options)


@dataclass(frozen=True)
class Plan:
    """How many blocks of how many steps, of which run."""

    block: int
    pairs: int
    config: Config

    @classmethod
    def of(cls, options: Options, outputs: str) -> Plan:
        block = QUICK_BLOCK if options.quick else BLOCK
        pairs = options.repetitions if options.quick else max(PAIRS, options.repetitions)
        steps = block * (1 + 2 * pairs)  # the first block warms up
        small = ("data.batch_size=16", "trainer.compile=false") if options.quick else ()
        given = (f"outputs={outputs}", f"trainer.max_steps={steps}", f"trainer.val_every={steps}", *small)
        return cls(block, pairs, ours.composed(*given, "logger.progress=bar"))


def of_a_step(options: Options) -> Iterator[Row]:
    say(f"overhead: {CASE}")
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        plan = Plan.of(options, folder)
        quiet = replace(plan.config, logger=replace(plan.config.logger, progress="none"))  # prints no plan
        run = run_folder.choose(quiet)
        with Training.prepare(quiet, run, signals=StopSignals(run.path)) as training:
            console = Console(file=nowhere, force_terminal=True)
            training = replace(training, config=plan.config, console=console)
            clock = Clock(plan.config.data.batch_size * plan.config.model.context_length, plan.config.logger.log_every)
            trainer = training._trainer(clock)
            probe = Probe(plan.block, training.hardware.precision)
            trainer.callbacks.append(probe)  # type: ignore[attr-defined]  # last: after the checkpoints
            trainer.fit(training.module, training.data)
            sampled = seconds_of_sample(training)
    yield from rows(probe, options)
    steps = 1000 * Spread.of(probe.seconds["quiet"]).median / plan.block
    yield Row(APART, "a step", Spread(steps, steps, steps), " ms")
    yield Row(APART, "validation with its sample and checkpoints", Spread.of(probe.validations), " s")
    yield Row(APART, f"a sample of {plan.config.logger.sample_length} characters", Spread.of([sampled]), " s")


def rows(probe: Probe, options: Options) -> Iterator[Row]:
    compared = {
        "logging, over none": ("logging", "quiet", LOGGING_TARGET),
        "framework without logging, over a bare loop": ("quiet", "bare", FRAMEWORK_TARGET),
        "framework with logging, over a bare loop": ("logging", "bare", None),
    }
    for name, (more, less, target) in compared.items():
        longer, shorter = probe.seconds[more], probe.seconds[less]
        figure = median_interval([a / b for a, b in zip(longer, shorter, strict=True)])
        verdict = at_most(figure, target, " x") if target is not None and not options.quick else None
        beside = {"pairs": str(len(longer)), "ratio of the means": f"{sum(longer) / sum(shorter):.4f}"}
        yield Row(CASE, name, figure, " x", verdict, beside)


def seconds_of_sample(training: Training) -> float:
    torch.compiler.set_stance("force_eager")  # as during a run's validation
    started = time.perf_counter()
    length, prompt = training.config.logger.sample_length, training.config.logger.sample_prompt
    text = generate(training.module.model, training.module.vocabulary, prompt, length=length)
    assert len("".join(text)) == length
    seconds = time.perf_counter() - started
    torch.compiler.set_stance("default")
    return seconds
