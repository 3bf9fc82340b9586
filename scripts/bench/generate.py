"""How fast are characters generated, with and without the key-value cache, and when does the first one come?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from bench import ours
from bench.harness import Contestant, Spread, one_line, race
from bench.options import Options, say
from bench.rows import Row, at_most, timed
from switch_lm.generation.sampling import Rule, read, sample
from switch_lm.model.attention import LayerCache
from switch_lm.model.transformer import SwitchLM
from switch_lm.storage import checkpoint

CONTEXT, CHARACTERS, QUICK_CHARACTERS = 256, 32, 8
CACHE_TARGET, FIRST_TARGET = 8.0, 3.0
CACHE, COMMAND = f"generation at {CONTEXT} positions", "first character"
NOTES = (
    f"The default model with a context of {CONTEXT} and untrained weights. The last {CHARACTERS} positions of a full "
    f"window (quick: {QUICK_CHARACTERS}), sampling included; the cache is filled beforehand. Figures are characters "
    "per second over those of recomputing the whole window for each character with as many threads as torch has.",
    "The command generates with one thread; recomputing is shown with one and with all.",
    "First character: from the start of `python -m switch_lm.generate` to the first byte on stdout.",
)


class Draw(NamedTuple):
    """A window, and the cache of all but its last character."""

    window: list[int]
    cache: list[LayerCache]


def measure(options: Options) -> Iterator[Row]:
    if options.wants(CACHE):
        say(f"generate: {CACHE}")
        yield from with_and_without_cache(options)
    if options.wants(COMMAND):
        say(f"generate: {COMMAND}")
        yield first_character(options)


def with_and_without_cache(options: Options) -> Iterator[Row]:
    model = small_model(f"model.context_length={CONTEXT}")
    number, threads = QUICK_CHARACTERS if options.quick else CHARACTERS, torch.get_num_threads()
    slow = f"recomputing, {threads} thread{'s' if threads > 1 else ''}"
    contestants = [Contestant(slow, lambda draw: recomputed(model, draw, number, threads))]
    if threads > 1:
        contestants.append(Contestant("recomputing, 1 thread", lambda draw: recomputed(model, draw, number, 1)))
    contestants.append(Contestant(fast := "with cache, 1 thread", lambda draw: cached(model, draw, number)))

    def draw(seed: int) -> Draw:
        generator = torch.Generator().manual_seed(seed + 2**32)
        window = torch.randint(model.vocab_size, (CONTEXT - number + 1,), generator=generator).tolist()
        cache = model.new_cache()
        read(model, window[:-1], cache)
        return Draw(window, cache)

    done = race(contestants, draw, repetitions=options.repetitions)
    torch.set_num_threads(threads)
    for name in (c.name for c in contestants):
        yield timed(
            CACHE,
            name,
            done,
            speed_over=slow,
            target=CACHE_TARGET if name == fast else None,
            facts=lambda seconds: {"characters/s": f"{number / seconds:,.0f}"},
        )


def first_character(options: Options) -> Row:
    """The median of some runs, after one that does not count and warms the caches."""
    times, name = 3 if options.quick else options.repetitions, "python -m switch_lm.generate"
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(path := Path(folder, "small.ckpt"))
        command = [sys.executable, *name.split()[1:], "--run", str(path), "--length", "1"]
        try:
            figure = Spread.of([seconds_to_output(command) for _ in range(1 + times)][1:])
        except OSError as error:
            return Row(COMMAND, name, error=one_line(error))
    return Row(COMMAND, name, figure, " s", at_most(figure, FIRST_TARGET, " s"), {"runs": str(times)})


def seconds_to_output(command: Sequence[str]) -> float:
    """Until its first byte on stdout; ChildProcessError if it ends without one."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if not first or process.returncode != 0:
        raise ChildProcessError(f"{' '.join(command)} ended with code {process.returncode}")
    return seconds


def cached(model: SwitchLM, draw: Draw, number: int) -> None:
    """Reads one character at a time."""
    torch.set_num_threads(1)
    generator, unread = torch.Generator().manual_seed(0), draw.window[-1:]
    for _ in range(number):
        logits_V = read(model, unread, draw.cache).logits_V
        unread = [sample(logits_V, Rule(0.8), generator)]


def recomputed(model: SwitchLM, draw: Draw, number: int, threads: int) -> None:
    """Reads the whole window for each character."""
    torch.set_num_threads(threads)
    generator, window = torch.Generator().manual_seed(0), draw.window
    for _ in range(number):
        logits_V = read(model, window, model.new_cache()).logits_V
        window = [*window, sample(logits_V, Rule(0.8), generator)]


def small_model(*overrides: str) -> SwitchLM:
    torch.manual_seed(0)
    config = ours.composed(*overrides)
    return SwitchLM(config.model, len(ours.vocabulary()), router=config.router, balance=config.balance).eval()


def write_checkpoint(path: Path) -> None:
    """A checkpoint of the default model, with everything that is read from one."""
    model, config = small_model(), ours.composed()
    characters, sha256 = ours.vocabulary().characters, ours.corpus().sha256
    header = checkpoint.Header(
        model=asdict(config.model),
        router=asdict(config.router),
        balance=asdict(config.balance),
        vocabulary=characters,
        corpus_sha256=sha256,
        precision="fp32",
        config=asdict(config),
    )
    weights = {checkpoint.MODEL_PREFIX + name: value for name, value in model.state_dict().items()}
    checkpoint.write({"state_dict": weights, checkpoint.KEY: header.as_plain()}, path)
