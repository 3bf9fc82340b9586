"""How fast is a training step beside others' ways, and how does it grow?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from bench import annotated, growth, nanogpt, ours
from bench.harness import Contestant, Race, Spread, race, told
from bench.options import Options, say
from bench.rows import Row, at_least
from switch_lm.data import Batch
from switch_lm.settings import Config

ANNOTATED = "annotated implementation's published setting"
DENSE = "dense preset beside nanoGPT's way"
ANNOTATED_TARGET, DENSE_TARGET = 3.0, 2.5  # times its tokens per second
NOTES = (
    "A step: forward, loss, backward, clipping, optimizer, schedule; the batch is drawn outside the timing, the same "
    "for all. Figures are tokens a second over those of the baseline in the same repetition, not seconds.",
    "Our precision is the one training chooses here. The target is judged on our fastest way, and "
    "not in a quick run, which compiles nothing.",
    *annotated.NOTES,
    *nanogpt.NOTES,
    *growth.NOTES,
)
Step = Callable[[Batch], None]


def measure(options: Options) -> Iterator[Row]:
    if options.wants(ANNOTATED):
        yield from beside_annotated(options)
    if options.wants(DENSE):
        yield from beside_nanogpt(options)
    yield from growth.measure(options)


def beside_annotated(options: Options) -> Iterator[Row]:
    say(f"step: {ANNOTATED}")
    config = ours.composed("experiment=annotated")
    theirs = contestant("labml-nn", lambda: annotated.training_step(len(ours.vocabulary())))
    yield from compare(ANNOTATED, config, [theirs], ANNOTATED_TARGET, options)


def beside_nanogpt(options: Options) -> Iterator[Row]:
    say(f"step: {DENSE}")
    config = ours.composed("model=dense")
    ways = {"nanoGPT's way, eager": False} | ({} if options.quick else {"nanoGPT's way, compiled": True})
    theirs = [
        contestant(name, lambda on=compiled: nanogpt.training_step(config.model, len(ours.vocabulary()), compiled=on))  # type: ignore[misc]
        for name, compiled in ways.items()
    ]
    yield from compare(DENSE, config, theirs, DENSE_TARGET, options)


def contestant(name: str, make: Callable[[], Step]) -> Contestant:
    try:
        return Contestant(name, make())
    except Exception as error:
        return Contestant(name, error=told(error))


def compare(case: str, config: Config, theirs: Sequence[Contestant], target: float, options: Options) -> Iterator[Row]:
    """Ours against the first of `theirs`; without compiling in a quick run, which it would take most of."""
    torch.compiler.reset()
    chosen = ours.hardware(config)
    ways = {"eager": False} if options.quick else {"eager": False, "compiled": True}
    own = [
        contestant(
            f"ours, {chosen.precision}, {way}",
            lambda on=compiled: ours.training_step(config, precision=chosen.precision, compiled=on),  # type: ignore[misc]
        )
        for way, compiled in ways.items()
    ]
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    contestants = [*theirs, *own]
    done = race(contestants, draw, repetitions=options.repetitions)
    tokens = config.data.batch_size * config.model.context_length
    fastest = min((c.name for c in own if c.name in done.seconds), key=lambda name: sum(done.seconds[name]), default="")
    for one in contestants:
        row_target = target if one.name == fastest and not options.quick else None
        yield speed_row(case, one.name, theirs[0].name, done, tokens, row_target)


def speed_row(case: str, name: str, baseline: str, done: Race, tokens: int, target: float | None) -> Row:
    if name in done.errors:
        return Row(case, name, error=done.errors[name])
    seconds = Spread.of(done.seconds[name]).median
    facts = {"tokens/s": f"{tokens / seconds:,.0f}", "ms": f"{1000 * seconds:.1f}"}
    figure = done.ratio(baseline, name)  # of times: theirs over ours is our tokens per second over theirs
    return Row(case, name, figure, " x", at_least(figure, target, " x") if target else None, facts)
