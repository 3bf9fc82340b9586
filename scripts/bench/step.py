"""How fast is a training step beside those of other implementations?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bench import annotated, nanogpt, ours
from bench.harness import Contestant, race
from bench.options import Options, say
from bench.rows import Row, timed
from switch_lm.config.schema import Config

ANNOTATED = "annotated implementation's published setting"
DENSE = "dense preset beside nanoGPT's way"
ANNOTATED_TARGET, DENSE_TARGET = 3.0, 2.5  # times its tokens per second
NOTES = (
    "A step: forward, loss, backward, clipping, optimizer, schedule. The batch is drawn outside the timing and is the "
    "same for all. Figures are tokens per second over those of the baseline in the same repetition.",
    "Our precision is the one that training chooses here. The target is judged on the faster of our rows, and not in a "
    "quick run, which compiles nothing.",
    *annotated.NOTES,
    *nanogpt.NOTES,
)


def measure(options: Options) -> Iterator[Row]:
    """In a quick run nothing is compiled: that would take most of it."""
    ways = {"eager": False} if options.quick else {"eager": False, "compiled": True}
    if options.wants(ANNOTATED):
        say(f"step: {ANNOTATED}")
        theirs = [Contestant.made_by(annotated.training_step, "labml-nn", len(ours.vocabulary()))]
        yield from compare(ANNOTATED, ours.composed("experiment=annotated"), theirs, ANNOTATED_TARGET, options, ways)
    if options.wants(DENSE):
        say(f"step: {DENSE}")
        config = ours.composed("model=dense")
        sizes = config.model, len(ours.vocabulary())
        theirs = [
            Contestant.made_by(nanogpt.training_step, f"nanoGPT's way, {way}", *sizes, compiled=compiled)
            for way, compiled in ways.items()
        ]
        yield from compare(DENSE, config, theirs, DENSE_TARGET, options, ways)


def compare(
    case: str, config: Config, theirs: Sequence[Contestant], target: float, options: Options, ways: dict[str, bool]
) -> Iterator[Row]:
    """Ours against the first of `theirs`."""
    torch.compiler.reset()
    precision = ours.hardware(config).precision
    own = [
        Contestant.made_by(
            ours.training_step, f"ours, {precision}, {way}", config, precision=precision, compiled=compiled
        )
        for way, compiled in ways.items()
    ]
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    done = race([*theirs, *own], draw, repetitions=options.repetitions)
    tokens = config.data.batch_size * config.model.context_length
    fastest = min((c.name for c in own if c.name in done.seconds), key=lambda name: sum(done.seconds[name]), default="")
    for one in (*theirs, *own):
        yield timed(
            case,
            one.name,
            done,
            speed_over=theirs[0].name,
            target=target if one.name == fastest and not options.quick else None,
            facts=lambda seconds: {"tokens/s": f"{tokens / seconds:,.0f}", "ms": f"{1000 * seconds:.1f}"},
        )
