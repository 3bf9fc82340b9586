"""Measures layers and training steps on a GPU: `python scripts/bench/gpu.py [--device cpu] [--quick]`."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":  # python puts the folder of this file first, where `bench` itself cannot be found
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import nanogpt, ours, peers
from bench.gpu_race import Bench, Call, product_rate, race, recorded
from bench.harness import one_line
from bench.peers import LayerSizes
from switch_lm.config.schema import Config
from switch_lm.model.experts import FeedForward
from switch_lm.model.switch import SwitchFeedForward, initialize
from switch_lm.training.data import Batch
from switch_lm.training.hardware import compile_module
from switch_lm.training.module import SwitchModule
from switch_lm.training.step_graph import StepGraph

LAYERS_UNTIL, STEPS_UNTIL = 85.0, 100.0  # seconds after the start, from which on what is not essential is left out
FACTORS = (1.0, 1.25, 2.0, None)
RECORDED_FACTORS = (1.0, 1.25, None)
SIZES = {"num_layers": 6, "num_heads": 6, "d_model": 384, "d_ff": 1536, "context_length": 256}  # nanoGPT's GPU recipe
QUICK_SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 32, "d_ff": 64, "context_length": 32}


def layers(bench: Bench, num_experts: int) -> None:
    """Forward and backward of one layer, with the gradients of input and weights."""
    shape = {"rows": 4, "positions": 32, "d_model": 32, "d_ff": 64} if bench.quick else {}
    full = {"rows": 64, "positions": 256, "d_model": 512, "d_ff": 2048}
    sizes = LayerSizes(**(full | shape), num_experts=num_experts)

    def dense() -> nn.Module:
        layer = FeedForward(d_model=sizes.d_model, d_ff=sizes.d_ff, activation="relu")
        initialize(layer, 0.1)
        return layer

    def switch(factor: float | None) -> Callable[[], nn.Module]:
        return lambda: SwitchFeedForward(
            d_model=sizes.d_model, d_ff=sizes.d_ff, num_experts=num_experts, capacity_factor=factor
        )

    def peer() -> nn.Module:
        w_DE = torch.randn(sizes.d_model, num_experts) * sizes.d_model**-0.5
        return peers.build(peers.hugging, sizes, w_DE, dropless=False)[0]

    makers = {"dense, eager": layer_maker(bench, sizes, dense)}
    makers |= {f"ours, {named(factor)}, eager": layer_maker(bench, sizes, switch(factor)) for factor in FACTORS}
    makers["transformers, eager"] = layer_maker(bench, sizes, peer)
    both: list[tuple[str, Callable[[], nn.Module]]] = [("dense", dense)]
    both += [(f"ours, {named(factor)}", switch(factor)) for factor in RECORDED_FACTORS]
    makers |= {f"{name}, recorded": layer_maker(bench, sizes, make, record=True) for name, make in both}
    for number, (name, make) in enumerate(both):
        extra = number > 1  # the goals are about capacity factor 1.0
        makers[f"{name}, compiled, recorded"] = layer_maker(bench, sizes, make, record=True, compiled=True, extra=extra)
    case = f"layer, {sizes.num_tokens} x {sizes.d_model} x {sizes.d_ff}, bf16, {num_experts} experts"
    race(bench, case, makers, baseline="dense, eager", tokens=sizes.num_tokens)


def named(factor: float | None) -> str:
    return "dropless" if factor is None else f"capacity factor {factor}"


def layer_maker(
    bench: Bench,
    sizes: LayerSizes,
    make: Callable[[], nn.Module],
    *,
    record: bool = False,
    compiled: bool = False,
    extra: bool = False,
) -> Callable[[], Call]:
    """Of a call that runs forward and backward; `extra` ones are made while there is time."""

    def made() -> Call:
        if record:
            bench.needs_gpu()
        bench.needs_time(LAYERS_UNTIL if extra else STEPS_UNTIL)
        torch.manual_seed(0)
        with bench.device:  # a host would take seconds to draw the weights
            layer = make().train()
        if compiled:
            compile_module(layer)
        shape = (sizes.rows, sizes.positions, sizes.d_model)
        x_BSD, grad_BSD = (torch.randn(shape, device=bench.device) for _ in range(2))
        call = both_passes(bench, layer, x_BSD.requires_grad_(), grad_BSD)
        return recorded(call) if record else call

    return made


def both_passes(bench: Bench, layer: nn.Module, x_BSD: Tensor, grad_BSD: Tensor) -> Call:
    gradients = [x_BSD, *layer.parameters()]

    def run() -> None:
        for tensor in gradients:
            tensor.grad = None
        with bench.autocast():
            y = layer(x_BSD)
        y_BSD = y[0] if isinstance(y, tuple) else y
        y_BSD.backward(grad_BSD.to(y_BSD.dtype))
        if x_BSD.grad is None:
            raise RuntimeError("no gradient reached the input")

    return run


def steps(bench: Bench) -> None:
    """A training step on batches that are on the device already: nanoGPT's way, and ours dense and Switch."""
    sizes = [f"model.{key}={value}" for key, value in (QUICK_SIZES if bench.quick else SIZES).items()]
    sizes.append(f"data.batch_size={4 if bench.quick else 64}")
    config = ours.composed("model=dense", *sizes)
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    some = [Batch(*(part.to(bench.device) for part in draw(number))) for number in range(4)]
    makers: dict[str, Callable[[], Call]] = {"nanoGPT's way, compiled": lambda: nanogpt_step(bench, config, some)}

    def add(name: str, *overrides: str) -> None:
        for optim in ("muon", "adamw"):
            chosen = ours.composed(*overrides, f"optim={optim}", *sizes)
            ways = ["compiled, recorded", "eager, recorded", "compiled, unrecorded"]
            for way in ways if optim == "muon" else ways[:1]:
                compiled, record = "compiled" in way, "unrecorded" not in way
                made = partial(our_step, bench, chosen, some, compiled=compiled, record=record)
                makers[f"ours, {name}, {optim}, {way}"] = made

    add("dense", "model=dense")
    add("switch of 8 experts", "model=switch", "model.num_experts=8", "model.switch_every=1")
    tokens = config.data.batch_size * config.model.context_length
    race(bench, f"step of {tokens} tokens", makers, baseline="nanoGPT's way, compiled", tokens=tokens)


def in_turn(some: Sequence[Batch]) -> Callable[[], Batch]:
    number = iter(range(2**31))
    return lambda: some[next(number) % len(some)]


def nanogpt_step(bench: Bench, config: Config, some: Sequence[Batch]) -> Call:
    torch.manual_seed(0)
    model = nanogpt.GPT(config.model, len(ours.vocabulary())).to(bench.device).train()
    model.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=nanogpt.LEARNING_RATE,
        betas=nanogpt.BETAS,
        weight_decay=nanogpt.WEIGHT_DECAY,
        fused=True,
    )
    following = in_turn(some)

    def loss(batch: Batch) -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return nn.functional.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten())

    run = ours.Step(model, loss, optimizer, clip=nanogpt.GRADIENT_NORM)
    return lambda: run(following())


def our_step(bench: Bench, config: Config, some: Sequence[Batch], *, compiled: bool, record: bool) -> Call:
    if record:
        bench.needs_gpu()
    bench.needs_time(STEPS_UNTIL)
    torch.manual_seed(config.seed)
    module = SwitchModule(config, ours.vocabulary(), corpus_sha256=ours.corpus().sha256, precision="bf16")
    module = module.to(bench.device).train()
    if compiled:
        for block in module.model.get_submodule("blocks").children():
            compile_module(block)
    chosen = module.configure_optimizers()
    optimizer, schedule, following = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"], in_turn(some)
    graph = StepGraph(module.both_passes, module.model, accumulates=False)
    if record:
        graph.record(some[0])

    def run() -> None:
        if record:
            graph.replay(following(), first=True)
        else:
            optimizer.zero_grad()
            module.both_passes(following())
        nn.utils.clip_grad_norm_(module.model.parameters(), config.optim.grad_clip)
        optimizer.step()
        schedule.step()

    return run


def main() -> int:
    """Writes $OUT/gpu_bench.json. Exit code 1 if nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: tries the lines")
    given = parser.parse_args()
    folder = Path(os.environ.get("OUT", "outputs/gpu_check"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device(given.device), given.quick, folder / "gpu_bench.json")
    torch._dynamo.config.recompile_limit = 64  # every layer here counts as another version of one function
    parts: list[Callable[[], None]] = [lambda: product_rate(bench)]
    parts += [lambda: layers(bench, 8), lambda: steps(bench), lambda: layers(bench, 64)]
    for part in parts:
        try:
            part()
        except Exception as error:
            bench.add("a part of the benchmark", "all rows", error=one_line(error))
        gc.unfreeze()
        gc.collect()  # the layers and recordings of the part
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return 0 if any("error" not in row for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
