"""How fast is a training step beside those of other implementations, and beside this machine's matrix products?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from bench import annotated, nanogpt, ours
from bench.harness import Contestant, Race, Spread, race
from bench.options import Options, say
from bench.rows import Row, at_least, timed
from switch_lm.config.schema import Config
from switch_lm.measure.machine_speed import PRODUCT, matmul
from switch_lm.training.hardware import fast_bf16

ANNOTATED = "annotated implementation's published setting"
DENSE = "dense preset beside nanoGPT's way"
DEFAULT = "default recipe, 8 experts"
# Times the tokens per second of the baseline.
ANNOTATED_TARGETS = {"fp32": 2.5, "bf16": 3.0}
SAME_WAY_TARGETS = {"eager": 1.0, "compiled": 1.1}  # fp32 and AdamW in both, each beside nanoGPT's of the same way
DENSE_TARGET = 2.5  # in bf16, beside nanoGPT's way, eager
SHARE_TARGET = 0.65  # of float32 products, in the default recipe
PRODUCTS = {
    "fp32": ("mm 2048 x 2048 x 2048, float32", torch.float32),
    "bf16": ("mm 2048 x 2048 x 2048, bfloat16", torch.bfloat16),
}
NOTES = (
    "A step: forward, loss, backward, clipping, optimizer, schedule. The batch is drawn outside the timing and is the "
    "same for all. Figures are tokens per second over those of the baseline in the same repetition.",
    "Ours is measured in fp32, and in bf16 too where the CPU has instructions for it. Where several rows of ours have "
    "one target, it is judged on the fastest of them. A quick run compiles nothing and judges nothing.",
    "Share: useful products of a step (kept assignments, the causal half of attention, head; forward and backward; "
    "without the optimizer's) over its seconds, over the rate of a product of two 2048 x 2048 matrices of the step's "
    "type with the same threads, which takes its turn in each repetition. The default recipe has routers that have "
    "learned to spread their load; the annotated setting has new ones, which drop more.",
    *annotated.NOTES,
    *nanogpt.NOTES,
)


@dataclass(frozen=True)
class Entry:
    """A contestant and what it is compared with."""

    contestant: Contestant
    over: str
    precision: str = "fp32"
    target: float | None = None  # judged on the fastest of ours of one precision that have the same
    is_ours: bool = True

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def step(self) -> ours.Step | None:
        """None: its useful products are not counted, or it could not be made."""
        block = self.contestant.block
        return block if isinstance(block, ours.Step) and block.useful is not None else None


def measure(options: Options) -> Iterator[Row]:
    """In a quick run nothing is compiled: that would take most of it."""
    ways = {"eager": False} if options.quick else {"eager": False, "compiled": True}
    for case, recipe, entries in (
        (ANNOTATED, "experiment=annotated", annotated_entries),
        (DENSE, "model=dense", dense_entries),
        (DEFAULT, "model=switch", default_entries),
    ):
        if options.wants(case):
            say(f"step: {case}")
            torch.compiler.reset()
            config = ours.composed(recipe)
            yield from compare(case, config, entries(config, ways), options)


def annotated_entries(config: Config, ways: Mapping[str, bool]) -> list[Entry]:
    theirs = Contestant.made_by(annotated.training_step, "labml-nn", len(ours.vocabulary()))
    own = [own_entry("ours", config, precision, way, compiled, over=theirs.name, target=ANNOTATED_TARGETS[precision])
           for precision in precisions() for way, compiled in ways.items()]  # fmt: skip
    return [Entry(theirs, theirs.name, is_ours=False), *own]


def dense_entries(config: Config, ways: Mapping[str, bool]) -> list[Entry]:
    """Float32 beside nanoGPT's way, eager and compiled; bf16, which that does not have, beside its eager one."""
    names = {way: f"nanoGPT's way, {way}" for way in ways}
    theirs = [
        Contestant.made_by(nanogpt.training_step, name, config, compiled=ways[way]) for way, name in names.items()
    ]
    entries = [Entry(one, names["eager"], is_ours=False) for one in theirs]
    adamw, muon, target = ours.composed("model=dense", "optim=adamw"), config, SAME_WAY_TARGETS
    for way, compiled in ways.items():
        over = names[way]
        entries.append(own_entry("ours with AdamW", adamw, "fp32", way, compiled, over=over, target=target[way]))
        entries.append(own_entry("ours with Muon", muon, "fp32", way, compiled, over=over))
    eager, bf16 = names["eager"], precisions()[1:]
    return entries + [own_entry("ours with Muon", muon, precision, way, compiled, over=eager, target=DENSE_TARGET)
                      for precision in bf16 for way, compiled in ways.items()]  # fmt: skip


def default_entries(config: Config, ways: Mapping[str, bool]) -> list[Entry]:
    weights = ours.settled(config)
    return [own_entry("ours", config, precision, way, compiled, over="ours, fp32, eager", weights=weights)
            for precision in precisions() for way, compiled in ways.items()]  # fmt: skip


def precisions() -> list[str]:
    """bf16 only where the CPU has instructions for it."""
    return ["fp32", "bf16"] if fast_bf16("cpu")[0] else ["fp32"]


def own_entry(
    label: str, config: Config, precision: str, way: str, compiled: bool, *, over: str, target: float | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Entry:  # fmt: skip
    name = f"{label}, {precision}, {way}"
    how = {"precision": precision, "compiled": compiled, "weights": weights}
    made = Contestant.made_by(ours.training_step, name, config, **how)
    return Entry(made, over, precision, target)


def compare(case: str, config: Config, entries: Sequence[Entry], options: Options) -> Iterator[Row]:
    used = [key for key in PRODUCTS if options.share and any(entry.precision == key for entry in entries)]
    products = [product_of(key) for key in used]
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    done = race([*products, *(entry.contestant for entry in entries)], draw, repetitions=options.repetitions)
    tokens = config.data.batch_size * config.model.context_length
    judged = [] if options.quick else fastest(entries, done)
    for entry in entries:

        def facts(seconds: float, over: str = entry.over) -> dict[str, str]:
            return {"over": over, "tokens/s": f"{tokens / seconds:,.0f}", "ms": f"{1000 * seconds:.1f}"}

        target = entry.target if entry.name in judged else None
        yield timed(case, entry.name, done, speed_over=entry.over, target=target, facts=facts)
    for product in products:
        rates = [PRODUCT / seconds / 1e9 for seconds in done.seconds[product.name]]
        yield Row(case, product.name, Spread.of(rates), " GFLOP/s")
    for entry in entries if options.share else ():
        if entry.step is not None and entry.name in done.seconds:
            goal = case == DEFAULT and entry.precision == "fp32" and entry.name in judged
            yield share_row(case, entry, done, SHARE_TARGET if goal else None)


def product_of(precision: str) -> Contestant:
    name, dtype = PRODUCTS[precision]
    multiply = matmul(dtype)
    return Contestant(name, lambda draw: multiply())


def fastest(entries: Sequence[Entry], done: Race) -> list[str]:
    """The names of the fastest of ours for each precision and target."""
    ran = [entry for entry in entries if entry.is_ours and entry.name in done.seconds]
    ran.sort(key=lambda entry: median(done.seconds[entry.name]), reverse=True)
    return list({(entry.precision, entry.target): entry.name for entry in ran}.values())


def share_row(case: str, entry: Entry, done: Race, target: float | None) -> Row:
    """The share of the whole step, and as a fact that of its two passes alone."""
    assert entry.step is not None and entry.step.useful is not None
    name, dtype = PRODUCTS[entry.precision]
    whole, products = done.seconds[entry.name], done.seconds[name]
    calls = entry.step.passes[-len(whole) * done.loops :]  # without those of the warm-up
    passes = [fmean(calls[first : first + done.loops]) for first in range(0, len(calls), done.loops)]
    useful = entry.step.useful()
    figure, of_passes = share(useful, whole, products), share(useful, passes, products)
    facts = {
        "useful GFLOP": f"{useful / 1e9:.1f}",
        "of forward and backward alone": f"{of_passes.median:.3f} ({of_passes.low:.3f} .. {of_passes.high:.3f})",
    }
    kind = str(dtype).removeprefix("torch.")
    verdict = None if target is None else at_least(figure, target)
    return Row(case, f"share of {kind} products, {entry.name}", figure, "", verdict, facts)


def share(useful: float, seconds: Sequence[float], products: Sequence[float]) -> Spread:
    """Of the rate of products that took so many seconds each, paired within each repetition."""
    return Spread.of([useful / one / (PRODUCT / product) for one, product in zip(seconds, products, strict=True)])
