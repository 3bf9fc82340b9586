"""What does a Switch layer cost beside a dense feed-forward of equal computation, and beside other implementations?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from bench import peers
from bench.harness import Contestant, Race, Spread, race
from bench.options import Options, say
from bench.peers import LayerSizes
from bench.rows import Row, Verdict, at_most
from switch_lm.experts import FeedForward
from switch_lm.hardware import compile_module
from switch_lm.routing import Routing
from switch_lm.switch import SwitchFeedForward, initialize

SIZES = (
    {"rows": 32, "positions": 128, "d_model": 128, "d_ff": 512},
    {"rows": 32, "positions": 256, "d_model": 256, "d_ff": 1024},
)
EXPERTS = (8, 64)
# Time over dense at capacity factor 1.0, by d_model, precision and experts.
TARGETS = {
    (128, "fp32", 8): 1.10, (128, "fp32", 64): 1.35, (128, "bf16", 8): 1.20, (128, "bf16", 64): 2.0,
    (256, "fp32", 8): 1.05, (256, "fp32", 64): 1.30, (256, "bf16", 8): 1.15, (256, "bf16", 64): 1.6,
}  # fmt: skip
SKEW = 10.0  # the logit by which half of all tokens prefer the first expert, or shun it; fresh logits are about 0.3
NOTES = (
    "Forward and backward, gradients of input and weights, all gradients None before each. A figure is time over that "
    "of the dense layer (compiled: over the compiled dense layer) in the same repetition.",
    "Compiled dense is given (T, D), ours (B, S, D): compiled on (B, S, D), the dense layer is 2 to 4 times slower "
    "than eager, since inductor saves the sign of ReLU as a bool mask and stores it slowly. It is shown, not used.",
    "Every call has a fresh random input, the same for all contestants of a repetition: loads differ each time.",
    "Skewed router: half of all tokens, drawn anew, prefer one expert.",
    "Dropless has the same targets as capacity factor 1.0. Peers have to be slower than ours of the same kind.",
    *peers.NOTES,
)


@dataclass(frozen=True)
class Cell:
    """One case of the layer."""

    sizes: LayerSizes
    precision: str
    skewed: bool

    @property
    def name(self) -> str:
        s = self.sizes
        router = "skewed" if self.skewed else "fresh"
        shape = f"{s.num_tokens} x {s.d_model} x {s.d_ff}"
        return f"{shape}, {self.precision}, {s.num_experts} experts, {router} router"

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Input number `number` (B, S, D), and the gradient of the output."""
        generator = torch.Generator().manual_seed(number + 2**32)
        shape = (self.sizes.rows, self.sizes.positions, self.sizes.d_model)
        x_BSD, grad_BSD = (torch.randn(shape, generator=generator) for _ in range(2))
        if self.skewed:
            x_BSD[..., 0] = torch.randint(2, shape[:2], generator=generator) * 2.0 - 1.0
        return x_BSD, grad_BSD


def cells(options: Options) -> Iterator[Cell]:
    shapes, numbers, skews = (SIZES[:1], EXPERTS[:1], (False,)) if options.quick else (SIZES, EXPERTS, (False, True))
    for shape, precision, num_experts, skewed in product(shapes, ("fp32", "bf16"), numbers, skews):
        cell = Cell(LayerSizes(**shape, num_experts=num_experts), precision, skewed)
        if options.wants(cell.name):
            yield cell


def measure(options: Options) -> Iterator[Row]:
    for cell in cells(options):
        say(f"layer: {cell.name}")
        yield from measure_cell(cell, options)


def measure_cell(cell: Cell, options: Options) -> Iterator[Row]:
    torch.compiler.reset()  # graphs of an earlier cell count against the limit of recompilations
    ours = {factor: switch_layer(cell, factor) for factor in (1.0, None)}
    w_router_DE = ours[1.0].w_router_DE.detach()
    contestants = [Contestant("dense", block(cell, *dense_layer(cell)))]
    contestants += [
        Contestant(our_name(factor), block(cell, first_of(layer), tuple(layer.parameters())))
        for factor, layer in ours.items()
    ]
    if not options.quick:
        contestants += compiled(cell)
    for dropless in (False, True):
        for peer in peers.peers(cell.sizes, w_router_DE, dropless=dropless):
            timed = None if peer.call is None else block(cell, peer.call, peer.parameters)
            contestants.append(Contestant(peer_name(peer.name, dropless), timed, peer.error))
    done = race(contestants, cell.draw, repetitions=options.repetitions)
    numbers = range(options.repetitions * done.loops)
    facts = {our_name(factor): load_facts(cell, layer, numbers) for factor, layer in ours.items()}
    yield from rows(cell, contestants, done, facts)


def our_name(factor: float | None) -> str:
    return "ours, dropless" if factor is None else f"ours, capacity factor {factor:g}"


def peer_name(name: str, dropless: bool) -> str:
    return f"{name}, dropless" if dropless else name


def switch_layer(cell: Cell, factor: float | None) -> SwitchFeedForward:
    torch.manual_seed(0)
    s = cell.sizes
    layer = SwitchFeedForward(d_model=s.d_model, d_ff=s.d_ff, num_experts=s.num_experts, capacity_factor=factor)
    if cell.skewed:
        with torch.no_grad():
            layer.w_router_DE[0] = 0.0
            layer.w_router_DE[0, 0] = SKEW
    return layer.train()


def dense_layer(cell: Cell) -> tuple[nn.Module, tuple[nn.Parameter, ...]]:
    layer = FeedForward(d_model=cell.sizes.d_model, d_ff=cell.sizes.d_ff, activation="relu").train()
    initialize(layer, 0.1)
    return layer, tuple(layer.parameters())


def compiled(cell: Cell) -> list[Contestant]:
    """The first calls, which compile, are not timed.

    The baseline is the dense layer on (T, D). On (B, S, D) inductor saves ReLU's sign as a bool mask, whose store takes
    longer than the products (torch 2.13, AVX-512): beside that, ours would look several times better than it is.
    """
    flat, flat_parameters = dense_layer(cell)
    dense, parameters = dense_layer(cell)
    ours = switch_layer(cell, 1.0)
    for layer in (flat, dense, ours):
        compile_module(layer)
    return [
        Contestant("dense, compiled", block(cell, lambda x: flat(x.flatten(0, 1)).view_as(x), flat_parameters)),
        Contestant("dense on (B, S, D), compiled", block(cell, dense, parameters)),
        Contestant(f"{our_name(1.0)}, compiled", block(cell, first_of(ours), tuple(ours.parameters()))),
    ]


def first_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x)[0]


def block(
    cell: Cell, call: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter]
) -> Callable[[tuple[Tensor, Tensor]], None]:
    """Forward and backward on one draw."""

    def run(draw: tuple[Tensor, Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = None
        x_BSD = draw[0].detach().requires_grad_()
        with cell.autocast():
            y_BSD = call(x_BSD)
        y_BSD.backward(draw[1].to(y_BSD.dtype))
        if x_BSD.grad is None:
            raise RuntimeError("no gradient reached the input")

    return run


def load_facts(cell: Cell, layer: SwitchFeedForward, numbers: range) -> dict[str, str]:
    """Of the timed draws, or the first ones of many; the router's jitter is drawn anew."""
    routings: list[Routing] = []
    with torch.no_grad(), cell.autocast():
        routings = [layer(cell.draw(number)[0])[1] for number in numbers[:9]]
    uneven = fmean((r.load_E.max() / r.load_E.float().mean()).item() for r in routings)
    dropped = fmean((~r.kept_TK).float().mean().item() for r in routings)
    return {"load max/mean": f"{uneven:.2f}", "dropped": f"{dropped:.1%}"}


def rows(cell: Cell, contestants: Sequence[Contestant], done: Race, facts: dict[str, dict[str, str]]) -> Iterator[Row]:
    target = TARGETS[cell.sizes.d_model, cell.precision, cell.sizes.num_experts]
    for name in (c.name for c in contestants):
        if name in done.errors:
            yield Row(cell.name, name, error=done.errors[name])
            continue
        figure = done.ratio(name, "dense, compiled" if name.endswith(", compiled") else "dense")
        beside: dict[str, Any] = {"ms": f"{1000 * Spread.of(done.seconds[name]).median:.1f}"} | facts.get(name, {})
        verdict = at_most(figure, target, " x") if name.startswith("ours") else None
        ours = our_name(None if name.endswith("dropless") else 1.0)
        if name not in facts and "dense" not in name and "ours" not in name and ours in done.seconds:
            margin = done.ratio(name, ours)
            assert margin is not None
            verdict = Verdict("slower than ours", margin.median > 1.0)
            beside["x ours"] = f"{margin.median:.2f} ({margin.low:.2f} .. {margin.high:.2f})"
        yield Row(cell.name, name, figure, " x", verdict, beside)
