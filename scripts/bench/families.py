"""What does each family of routers cost per computed assignment, relative to `switch`?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import torch

from bench.harness import Contestant, Race, Spread, race
from bench.layer_cells import Cell, block
from bench.options import Options
from bench.rows import Row, at_most
from switch_lm.config.families import FAMILIES, load
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.cutoffs import CutoffRouter
from switch_lm.routers.routing import Routing
from switch_lm.routers.threshold import ThresholdRouter

TARGET = 1.5  # x the time of `switch`, for each assignment that an expert computes
CHARACTERS = 65  # as in Tiny Shakespeare, with frequencies like those of words: the n-th is 1 / n as frequent
TWO = ("topk", "sigmoid")  # with two experts per token
SEEN = 5  # inputs from which cut-offs are learned


def measure_families(cell: Cell, options: Options) -> Iterator[Row]:
    """Each dropless; expert choice with a capacity factor of 1; thresholds after their warm-up."""
    layers = {name: family_layer(cell, name) for name in FAMILIES["router"]}
    contestants = [Contestant(name, block(cell, layer, Call(cell, layer))) for name, layer in layers.items()]
    done = race(contestants, cell.draw, repetitions=options.repetitions)
    executed = {name: computed(cell, layer, options.repetitions) for name, layer in layers.items()}
    for name in layers:
        yield row(cell, name, done, executed)


class Call:
    """The layer on an input, with characters and positions for a router that reads them."""

    def __init__(self, cell: Cell, layer: SwitchFeedForward) -> None:
        generator = torch.Generator().manual_seed(0)
        frequency_V = 1.0 / torch.arange(1.0, CHARACTERS + 1)
        ids_T = torch.multinomial(frequency_V, cell.num_tokens, replacement=True, generator=generator)
        self.layer, self.ids_BS = layer, ids_T.view(cell.rows, cell.positions)
        self.position_S = torch.arange(cell.positions)
        layer.router.prepare(ids_T.bincount(minlength=CHARACTERS))

    def routed(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        routed: tuple[torch.Tensor, Routing] = self.layer(x_BSD, ids_BS=self.ids_BS, position_S=self.position_S)
        return routed

    def __call__(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return self.routed(x_BSD)[0]


def family_layer(cell: Cell, name: str) -> SwitchFeedForward:
    torch.manual_seed(0)
    family, sizes = load("router", name), {"d_model": cell.d_model, "num_experts": cell.num_experts}
    router = family(replace(family.Options(), top_k=2) if name in TWO else family.Options(), **sizes)
    layer = SwitchFeedForward(
        d_model=cell.d_model,
        d_ff=cell.d_ff,
        num_experts=cell.num_experts,
        capacity_factor=1.0 if name == "expert_choice" else None,
        router=router,
    ).train()
    call = Call(cell, layer)
    if isinstance(router, CutoffRouter):
        for number in range(SEEN):
            with torch.no_grad():
                router.after_step([call.routed(cell.draw(number)[0])[1]])
    if isinstance(router, ThresholdRouter):
        router.warmup.zero_()
    return layer


def computed(cell: Cell, layer: SwitchFeedForward, repetitions: int) -> float:
    """How many assignments experts compute for a token."""
    call = Call(cell, layer)
    with torch.no_grad():
        routings = [call.routed(cell.draw(number)[0])[1] for number in range(repetitions)]
    return fmean(routing.kept_E.sum().item() for routing in routings) / cell.num_tokens


def row(cell: Cell, name: str, done: Race, executed: dict[str, float]) -> Row:
    case = f"{cell.name}: routers, time for each computed assignment"
    if (ratio := done.ratio(name, "switch")) is None:
        return Row(case, name, error=done.errors.get(name))
    each = executed["switch"] / executed[name]
    figure = Spread(*(each * part for part in (ratio.median, ratio.low, ratio.high)))
    seconds = Spread.of(done.seconds[name]).median
    facts = {"ms": f"{1000 * seconds:.1f}", "experts per token": f"{executed[name]:.2f}"}
    return Row(case, name, figure, " x switch", at_most(figure, TARGET, " x"), facts)
