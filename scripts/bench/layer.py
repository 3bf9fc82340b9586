"""What does a Switch layer cost beside a dense feed-forward of equal products, and beside other implementations?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from statistics import fmean

import torch
from torch import Tensor, nn

from bench import peers
from bench.families import measure_families
from bench.harness import Contestant, Race, race
from bench.layer_cells import Call, Cell, Draw, block
from bench.options import Options, say
from bench.rows import Row, Verdict, timed
from switch_lm.model.experts import FeedForward
from switch_lm.model.switch import SwitchFeedForward, initialize
from switch_lm.training.hardware import compile_module, fast_bf16

SIZES = (
    {"rows": 32, "positions": 128, "d_model": 128, "d_ff": 512},
    {"rows": 32, "positions": 256, "d_model": 256, "d_ff": 1024},
)
EXPERTS = (8, 64)
# Time over dense at capacity factor 1.0, by d_model, precision and experts.
TARGETS = {
    (128, "fp32", 8): 1.10, (128, "fp32", 64): 1.30, (128, "bf16", 8): 1.20, (128, "bf16", 64): 2.0,
    (256, "fp32", 8): 1.05, (256, "fp32", 64): 1.30, (256, "bf16", 8): 1.15, (256, "bf16", 64): 1.6,
}  # fmt: skip
SKEW = 10.0  # the logit by which half of all tokens prefer the first expert, or avoid it; fresh logits are about 0.3
NOTES = (
    "Forward and backward, gradients of input and weights, all gradients None before each. A figure is time over that "
    "of the dense layer (compiled: over the compiled dense layer) in the same repetition.",
    "Compiled dense gets (T, D), ours (B, S, D): compiled on (B, S, D), the dense layer is 2 to 4 times slower than "
    "eager, since inductor saves the sign of ReLU as a bool mask and stores it slowly. That is shown, not used.",
    "Every call has a fresh random input, the same for all contestants of a repetition: loads differ each time.",
    "Skewed router: half of all tokens, a different half in each input, prefer one expert.",
    "Without bf16 instructions only fp32 is measured, unless --only names bf16.",
    "Dropless has the same targets as capacity factor 1.0. Peers have to be slower than ours of the same kind.",
    "Routers: dropless; expert choice with a capacity factor of 1, thresholds after their warm-up, topk and sigmoid "
    "with two experts per token. The characters are drawn with frequencies like those of words.",
    *peers.NOTES,
)


def measure(options: Options) -> Iterator[Row]:
    shapes, numbers, skews = (SIZES[:1], EXPERTS[:1], (False,)) if options.quick else (SIZES, EXPERTS, (False, True))
    for shape, precision, num_experts, skewed in product(shapes, ("fp32", "bf16"), numbers, skews):
        cell = Cell(**shape, num_experts=num_experts, precision=precision, skewed=skewed)
        usable = precision == "fp32" or fast_bf16("cpu")[0] or any("bf16" in part for part in options.only)
        if usable and options.wants(cell.name):
            say(f"layer: {cell.name}")
            yield from measure_cell(cell, options)
            if not (skewed or options.quick):
                yield from measure_families(cell, options)


def measure_cell(cell: Cell, options: Options) -> Iterator[Row]:
    torch.compiler.reset()  # graphs of an earlier cell count against the limit of recompilations
    ours = {our_name(dropless=dropless): switch_layer(cell, dropless=dropless) for dropless in (False, True)}
    contestants = [Contestant("dense", block(cell, dense_layer(cell)))]
    contestants += [Contestant(name, block(cell, layer, first_of(layer))) for name, layer in ours.items()]
    if not options.quick:
        contestants += compiled(cell)
    w_DE = weights_of(ours[our_name(dropless=False)]).detach()
    rivals = {}  # and which of ours is of the same kind
    for dropless in (False, True):
        for name, make in peers.peers(dropless=dropless).items():
            shown = f"{name}, dropless" if dropless else name
            rivals[shown] = our_name(dropless=dropless)
            contestants.append(Contestant.made_by(peer_block, shown, cell, make, w_DE, dropless=dropless))
    done = race(contestants, cell.draw, repetitions=options.repetitions)
    numbers = range(options.repetitions * done.loops)
    facts = {name: load_facts(cell, layer, numbers) for name, layer in ours.items()}
    for one in contestants:
        yield row(cell, one.name, done, rivals.get(one.name), facts.get(one.name, {}))


def our_name(*, dropless: bool) -> str:
    return "ours, dropless" if dropless else "ours, capacity factor 1"


def switch_layer(cell: Cell, *, dropless: bool) -> SwitchFeedForward:
    torch.manual_seed(0)
    layer = SwitchFeedForward(
        d_model=cell.d_model,
        d_ff=cell.d_ff,
        num_experts=cell.num_experts,
        capacity_factor=None if dropless else 1.0,
    )
    if cell.skewed:
        with torch.no_grad():
            weights_of(layer)[0] = 0.0
            weights_of(layer)[0, 0] = SKEW
    return layer.train()


def weights_of(layer: SwitchFeedForward) -> Tensor:
    """W_r (D, E)."""
    return torch.as_tensor(layer.router.w_DE)


def dense_layer(cell: Cell) -> nn.Module:
    layer = FeedForward(d_model=cell.d_model, d_ff=cell.d_ff, activation="relu").train()
    initialize(layer, 0.1)
    return layer


def compiled(cell: Cell) -> list[Contestant]:
    """The first calls, which compile, are not timed.

    The baseline is the dense layer on (T, D). On (B, S, D) inductor saves ReLU's sign as a bool mask, whose store takes
    longer than the products (torch 2.13, AVX-512): beside that, ours would look several times better than it is.
    """
    flat, dense, ours = dense_layer(cell), dense_layer(cell), switch_layer(cell, dropless=False)
    for layer in (flat, dense, ours):
        compile_module(layer)
    return [
        Contestant("dense, compiled", block(cell, flat, lambda x: flat(x.flatten(0, 1)).view_as(x))),
        Contestant("dense on (B, S, D), compiled", block(cell, dense)),
        Contestant(f"{our_name(dropless=False)}, compiled", block(cell, ours, first_of(ours))),
    ]


def first_of(layer: nn.Module) -> Call:
    return lambda x: layer(x)[0]


def peer_block(cell: Cell, make: peers.Make, w_DE: Tensor, *, dropless: bool) -> Callable[[Draw], None]:
    return block(cell, *peers.build(make, cell, w_DE, dropless=dropless))


def load_facts(cell: Cell, layer: SwitchFeedForward, numbers: range) -> dict[str, str]:
    """Of the timed draws, or the first ones of many. The router's jitter is a new draw."""
    with torch.no_grad(), cell.autocast():
        routings = [layer(cell.draw(number)[0])[1] for number in numbers[:9]]
    uneven = fmean((r.load_E.max() / r.load_E.float().mean()).item() for r in routings)
    dropped = fmean((~r.kept_TK).float().mean().item() for r in routings)
    return {"load max/mean": f"{uneven:.2f}", "dropped": f"{dropped:.1%}"}


def row(cell: Cell, name: str, done: Race, rival: str | None, facts: dict[str, str]) -> Row:
    """Ours is judged against the dense layer, a peer against ours of the same kind."""
    margin = done.ratio(name, rival) if rival is not None else None
    if margin is not None:
        facts = {"x ours": f"{margin.median:.2f} ({margin.low:.2f} .. {margin.high:.2f})"}
    result = timed(
        cell.name,
        name,
        done,
        time_over="dense, compiled" if name.endswith(", compiled") else "dense",
        target=TARGETS[cell.d_model, cell.precision, cell.num_experts] if name.startswith("ours") else None,
        facts=lambda seconds: {"ms": f"{1000 * seconds:.1f}"} | facts,
    )
    return result if margin is None else replace(result, verdict=Verdict("slower than ours", margin.median > 1.0))
