"""How many steps fit into `trainer.budget`: the rule that chooses them, and what the other keys become."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

from switch_lm.config.durations import in_words, seconds_of
from switch_lm.config.rules import SET_BY_BUDGET, flatten
from switch_lm.config.schema import Config
from switch_lm.measure.ledger import run_ledger
from switch_lm.training.hardware import detect
from switch_lm.training.pace import COMPILING, Trial
from switch_lm.training.prepare import Training

LADDER = (200, 300, 400, 600, 800, 1000, 1200, 1500, 1800, 2500, 3600, 5200, 7500, 10500, 15600)
MOST_OVER = 1.25  # times the budget
RISE = 20  # a warm-up is not cut below one step in this many, unless it was shorter already
MOST_TIMED = 8.0  # seconds of steps


def lengths(max_steps: int) -> list[int]:
    """The numbers of steps to choose from: those of the ladder below the recipe's own, and that."""
    return [steps for steps in LADDER if steps < max_steps] + [max_steps]


def scaled(config: Config, steps: int) -> Config:
    """The run in so many steps, without a budget: as many validations, and a warm-up of at most the same length."""
    whole, trainer, warmup = config.trainer.max_steps, config.trainer, config.optim.warmup_steps
    trainer = replace(trainer, budget=None)
    if steps == whole:
        return replace(config, trainer=trainer)
    validations = max(1, round(whole / trainer.val_every))
    trainer = replace(trainer, max_steps=steps, val_every=math.ceil(steps / validations))
    rise = max(math.ceil(warmup * steps / whole), math.ceil(steps / RISE))
    return replace(config, trainer=trainer, optim=replace(config.optim, warmup_steps=min(warmup, rise)))


def nearest(seconds: Mapping[int, float], limit: float) -> int:
    """Which number of steps to take, from the seconds that each takes: all, if they fit, or else the nearest by ratio.

    The smallest if all take too much longer than the limit.
    """
    if seconds[max(seconds)] <= limit:
        return max(seconds)
    allowed = [steps for steps in seconds if seconds[steps] <= MOST_OVER * limit] or [min(seconds)]
    return min(allowed, key=lambda steps: abs(math.log(seconds[steps] / limit)))


def within_budget(training: Training, *, compiles: bool = True) -> Config:
    """The configuration whose whole command takes about `trainer.budget` here, without it. Prints what it chose.

    The module is used up. `compiles`: whether the trial may be compiled; otherwise compiled steps are estimated.
    """
    config, console = training.config, training.console
    limit = seconds_of(str(config.trainer.budget))
    console.print(f"timing a few steps, to choose how many take {in_words(limit)} here ...", highlight=False)
    plans = {steps: scaled(config, steps) for steps in lengths(config.trainer.max_steps)}
    work = run_ledger(replace(config, trainer=replace(config.trainer, max_steps=1)), vocab_size=training.vocab_size)
    compiled = {steps: detect(plan, training_flops=work.training * steps).compile for steps, plan in plans.items()}
    trial, timed = Trial(training), min(MOST_TIMED, max(1.0, limit / 40))
    pace = trial.eager(seconds=timed)

    def seconds(*, compiling: float | None = None) -> dict[int, float]:
        spent = time.monotonic() - training.started
        assumed = pace if compiling is None else replace(pace, compiling=compiling)
        return {steps: spent + assumed.seconds(plan, compiles=compiled[steps]) for steps, plan in plans.items()}

    steps = nearest(seconds(compiling=0.0), limit)
    # All of them fit even if compiling takes twice as long as usual: nothing is to be found out.
    if compiles and compiled[steps] and seconds(compiling=2 * COMPILING)[max(plans)] > limit:
        console.print("compiling the steps, to time them compiled (up to a minute the first time) ...", highlight=False)
        pace = trial.compiled(pace, seconds=timed)
    steps = nearest(takes := seconds(), limit)
    _say(training, plans[steps], takes[steps], limit)
    return plans[steps]


def _say(training: Training, chosen: Config, seconds: float, limit: float) -> None:
    steps, whole, budget = chosen.trainer.max_steps, training.config.trainer.max_steps, training.config.trainer.budget
    here = f"about {in_words(seconds)} here ({seconds:.0f} s)" if seconds >= 120 else f"about {in_words(seconds)} here"
    line = f"{steps:,} of {whole:,} steps: {here}"
    if steps == whole and seconds <= limit:
        line = (
            f"all {whole:,} steps take {here}: less than trainer.budget={budget}, so the run is the same as without it"
        )
    elif seconds > MOST_OVER * limit:
        line = f"even {steps:,} steps take {here}, more than trainer.budget={budget}"
    training.console.print(line, highlight=False)
    if steps < whole:
        keys = flatten(asdict(chosen))
        print("to repeat this run:", *(f"{key}={keys[key]}" for key in SET_BY_BUDGET), flush=True)
