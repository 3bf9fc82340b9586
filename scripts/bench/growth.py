"""How do time and memory of a training step grow with experts and with tokens?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import torch
from torch._dynamo import config as dynamo

from bench import commands, ours
from bench.harness import Contestant, Spread, race, told
from bench.options import Options, say
from bench.rows import Row, at_most

EXPERTS, QUICK_EXPERTS, JUDGED = (1, 2, 4, 8, 16, 32, 64, 128), (1, 32), 32
TOKENS = (1, 2, 4)
EXPERTS_TARGET, TOKENS_TARGET, MEMORY_TARGET = 1.5, 1.1, 1.3
MEMORY_EXPERTS, QUICK_MEMORY_EXPERTS = (1, 8, 32), (8,)
MEBIBYTE = 2**20
NOTES = (
    "Growth: the default model and batch at capacity factor 1.0, optimizer included; experts against 1 expert, tokens "
    "as time for each token against the default batch (1 is linear).",
    "Memory: growth of the peak resident set from before the model is made to after three steps, eager, a fresh "
    "process for each case, over that of the dense model plus the extra weights and optimizer state (gradients and "
    "casts of the extra weights are not forgiven).",
)


def measure(options: Options) -> Iterator[Row]:
    for compiled in (False,) if options.quick else (False, True):
        if options.wants(case := f"growth with experts, {'compiled' if compiled else 'eager'}"):
            yield from by_experts(case, options, compiled=compiled)
    if not options.quick and options.wants(case := "growth with tokens"):
        yield from by_tokens(case, options)
    if options.wants(case := "memory of a step"):
        yield from by_memory(case, options)


def by_experts(case: str, options: Options, *, compiled: bool) -> Iterator[Row]:
    say(f"step: {case}")
    torch.compiler.reset()
    dynamo.recompile_limit = 4 * len(EXPERTS)  # each number of experts is a graph of its own
    config = ours.composed("model.capacity_factor=1.0")
    numbers = QUICK_EXPERTS if options.quick else EXPERTS
    precision = ours.hardware(config).precision
    contestants = []
    for num_experts in numbers:
        sized = ours.composed("model.capacity_factor=1.0", f"model.num_experts={num_experts}")
        step = ours.training_step(sized, precision=precision, compiled=compiled)
        contestants.append(Contestant(f"{num_experts} experts", step))
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    done = race(contestants, draw, repetitions=options.repetitions)
    for num_experts in numbers:
        name = f"{num_experts} experts"
        if name in done.errors:
            yield Row(case, name, error=done.errors[name])
            continue
        figure = done.ratio(name, f"{numbers[0]} experts")
        verdict = at_most(figure, EXPERTS_TARGET, " x") if num_experts == JUDGED else None
        yield Row(case, name, figure, " x", verdict, {"ms": f"{1000 * Spread.of(done.seconds[name]).median:.1f}"})


def by_tokens(case: str, options: Options) -> Iterator[Row]:
    say(f"step: {case}")
    config = ours.composed("model.capacity_factor=1.0")
    rows, precision = config.data.batch_size, ours.hardware(config).precision
    step = ours.training_step(config, precision=precision, compiled=False)
    drawn = {k: ours.batches(batch_size=k * rows, context_length=config.model.context_length) for k in TOKENS}
    contestants = [Contestant(f"{k} x tokens", lambda draws, k=k: step(draws[k])) for k in TOKENS]  # type: ignore[misc]
    done = race(contestants, lambda n: {k: drawn[k](n) for k in TOKENS}, repetitions=options.repetitions)
    for k in TOKENS:
        ratio = done.ratio(f"{k} x tokens", "1 x tokens")
        if ratio is None:
            yield Row(case, f"{k} x tokens", error=done.errors.get(f"{k} x tokens", "the baseline did not run"))
            continue
        figure = Spread(ratio.median / k, ratio.low / k, ratio.high / k)
        yield Row(case, f"{k} x tokens", figure, " x", at_most(figure, TOKENS_TARGET, " x") if k > 1 else None)


def by_memory(case: str, options: Options) -> Iterator[Row]:
    times = 1 if options.quick else 3
    try:
        dense = [peak("model=dense") for _ in range(times)]
        for num_experts in QUICK_MEMORY_EXPERTS if options.quick else MEMORY_EXPERTS:
            say(f"step: {case}, {num_experts} experts")
            given = ("model.capacity_factor=1.0", f"model.num_experts={num_experts}")
            switch = [peak(*given) for _ in range(times)]
            extra = switch[0]["kept"] - dense[0]["kept"]
            pairs = zip(switch, dense, strict=True)
            figure = Spread.of([s["growth"] / (d["growth"] + extra) for s, d in pairs])
            facts = {
                name: f"{count / MEBIBYTE:.0f} MiB"
                for name, count in {"ours": switch[0]["growth"], "dense": dense[0]["growth"], "extra": extra}.items()
            }
            yield Row(case, f"{num_experts} experts", figure, " x", at_most(figure, MEMORY_TARGET, " x"), facts)
    except (OSError, subprocess.SubprocessError) as error:
        yield Row(case, "ours", error=told(error))


def peak(*overrides: str) -> dict[str, int]:
    """What bench.memory prints in a process of its own."""
    command = commands.python("-m", "bench.memory", *overrides)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=commands.environment())
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found
