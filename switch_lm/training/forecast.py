"""What a run says of its time: the line in its first half minute, and `train --plan`."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from switch_lm.config.durations import in_words
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.text.windows import fixed_windows
from switch_lm.training.budget import LADDER
from switch_lm.training.hardware import detect
from switch_lm.training.pace import Pace, Trial, settling
from switch_lm.training.prepare import Training
from switch_lm.training.summary import print_plan

LONG = 360.0  # seconds; longer runs get the hint about trainer.budget
TIMED = 3.0  # seconds of steps for a plan


def show_plan(training: Training) -> None:
    """What will be trained."""
    data, config = training.data, training.config
    added = {"starts from": training.start} if training.start else {}
    if config.train_only != "all":
        trained = sum(weight.numel() for weight in training.module.model.parameters() if weight.requires_grad)
        added["trained"] = f"{trained:,} parameters (train_only={config.train_only}), the others stay as they are"
    print_plan(
        training.console, config, training.hardware, run=training.run.path, source=training.corpus.source,
        sizes=(len(data.training_ids), len(data.validation_ids)), vocab=training.vocab_size,
        added=added,
    )  # fmt: skip


def line(training: Training, seconds_left: float) -> str:
    """How long the command takes, from what is left of it."""
    seconds, run = time.monotonic() - training.started + seconds_left, training.run
    shorter = training.config.trainer.max_steps > LADDER[0] and run.resumes_from is None and run.sweep is None
    hint = "; trainer.budget=5m would end sooner" if seconds > LONG and shorter else ""
    return f"about {in_words(seconds)} on this machine{hint}"


def line_for(training: Training) -> Callable[[float], str] | None:
    """What says it after the first steps; None where it is said before: by a budget, or before compiling."""
    return None if training.again or _compiles_first(training) else lambda left: line(training, left)


def say_before_compiling(training: Training) -> None:
    """By eager passes that leave nothing: all noise of a step is seeded by its number."""
    if training.again or not _compiles_first(training) or training.console.quiet:
        return
    module, data, bf16 = training.module, training.data, training.hardware.precision == "bf16"
    ids_BS, target_BS = fixed_windows(
        data.training_ids, context_length=data.context_length, num_windows=training.config.rows_per_process
    )
    with torch.random.fork_rng([]), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for _ in range(2):  # the first one is slower
            began = time.perf_counter()
            losses = module.losses(ids_BS, target_BS)
            losses.total.backward()
            module.zero_grad()
            seconds = time.perf_counter() - began
    seconds *= settling(training, [losses.routings])
    left = Pace.of_pass(seconds, training).seconds(training.config, compiles=True, done=training.first_step)
    training.console.print(line(training, left), highlight=False)


def _compiles_first(training: Training) -> bool:
    done = training.first_step >= training.config.trainer.max_steps
    return training.hardware.compile and training.hardware.device == "cpu" and not done


def print_with_time(training: Training) -> None:
    """What `train --plan` prints of a single run: what a run prints, and its estimated time. The module is used up."""
    show_plan(training)
    compiles = training.hardware.compile
    spent = time.monotonic() - training.started
    parts = Trial(training).eager(seconds=TIMED).parts(training.config, compiles=compiles, done=training.first_step)
    steps, left = training.config.trainer.max_steps, training.config.trainer.max_steps - training.first_step
    resumed = f"{left:,} of {steps:,} steps are left: " if training.first_step else ""
    training.console.print(resumed + estimate(spent, parts, compiles=compiles), highlight=False)


def of_each(training: Training, configs: Sequence[Config]) -> tuple[float, list[float]]:
    """The seconds that starting takes, and those of each job of a sweep.

    Steps of the first, which is `training`, are timed and its module is used up.
    """
    start = time.monotonic() - training.started
    ledgers = [run_ledger(config, vocab_size=training.vocab_size) for config in configs]
    work = [one.per_step + one.optimizer_per_step for one in ledgers]
    compiles = [
        detect(config, training_flops=one.training).compile for config, one in zip(configs, ledgers, strict=True)
    ]
    pace = Trial(training).eager(seconds=TIMED)
    return start, [
        pace.times(one / work[0]).seconds(config, compiles=compiled)
        for config, one, compiled in zip(configs, work, compiles, strict=True)
    ]


def estimate(spent: float, parts: Mapping[str, float], *, compiles: bool) -> str:
    """`spent`: seconds before the run's first step, which are as many in the run itself."""
    parts = {"starting": spent, **parts}
    total = sum(parts.values())
    named = [f"{in_words(seconds)} for {name}" for name, seconds in parts.items() if seconds > 0.05 * total]
    how = " (compiled steps are estimated from eager ones)" if compiles else ""
    return f"about {in_words(total)} on this machine, including {', '.join(named)}{how}"
