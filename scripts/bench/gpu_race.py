"""Races on a GPU: contestants in turn, by the GPU's own clock, and recorded calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.harness import frozen_garbage, one_line, paired
from switch_lm.training.step_graph import refusing_to_wait

ROUNDS, WARM_UPS = 5, 3
Call = Callable[[], object]


class LeftOutError(Exception):
    """A row that is not measured here; the message says why."""


@dataclass
class Bench:
    """Where it runs, how large the cases are, and the rows so far."""

    device: torch.device
    quick: bool
    file: Path
    started: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """Without a cache of cast weights: a recording may not use what an earlier pass left."""
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def needs_time(self, until: float) -> None:
        if time.perf_counter() - self.started > until:
            raise LeftOutError("no time was left")

    def needs_gpu(self) -> None:
        if not self.on_gpu:
            raise LeftOutError("only a GPU records")

    def add(self, case: str, name: str, **figures: Any) -> None:
        """Prints a row and writes all rows so far."""
        self.rows.append({"case": case, "name": name, **figures})
        told = "".join(f" {key}={value:.4g}" for key, value in figures.items() if isinstance(value, float))
        seconds = time.perf_counter() - self.started
        print(f"{seconds:5.1f} s  {case}: {name}:{told or ' ' + figures.get('error', '')}", flush=True)
        self.file.write_text(json.dumps({"device": str(self.device), "quick": self.quick, "rows": self.rows}, indent=1))

    def seconds(self, call: Call, calls: int) -> float:
        """Of one call, by the GPU's own clock, with the gaps between its kernels."""
        if not self.on_gpu:
            started = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - started) / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls


def race(bench: Bench, case: str, makers: dict[str, Callable[[], Call]], *, baseline: str, tokens: int) -> None:
    """Makes and warms up all, then times them in turn; what raises is out, and its row says why."""
    calls: dict[str, Call] = {}
    seconds: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
            for _ in range(WARM_UPS):
                calls[name]()
            seconds[name] = []
        except Exception as error:  # also of a peer or a compiler
            errors[name] = f"left out: {error}" if isinstance(error, LeftOutError) else one_line(error)
    for _ in range(ROUNDS):
        for name in list(seconds):
            try:
                with frozen_garbage():
                    seconds[name].append(bench.seconds(calls[name], 2 if bench.quick else 8))
            except Exception as error:
                errors[name] = one_line(error)
                del seconds[name]
    for name in makers:
        if name in errors:
            bench.add(case, name, error=errors[name])
            continue
        figures: dict[str, Any] = {"median_seconds": sorted(seconds[name])[ROUNDS // 2], "seconds": seconds[name]}
        figures["tokens_per_second"] = tokens / figures["median_seconds"]
        if baseline in seconds:
            ratio = paired(seconds[name], seconds[baseline])
            figures |= {"ratio": ratio.median, "ratio_quartiles": [ratio.low, ratio.high], "over": baseline}
        bench.add(case, name, **figures)


def product_rate(bench: Bench) -> None:
    """What the card gives at most."""
    size = 128 if bench.quick else 8192
    case = f"{size}^3 bf16 product"
    try:
        a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(WARM_UPS):
            a @ b
        rates = sorted(2e-12 * size**3 / bench.seconds(lambda: a @ b, 10) for _ in range(ROUNDS))
        bench.add(case, "torch", tflops=rates[ROUNDS // 2])
    except Exception as error:
        bench.add(case, "torch", error=one_line(error))


def recorded(call: Call) -> Call:
    """A replay of the call as a CUDA graph. The call sets all gradients to None before it makes new ones."""
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for number in range(WARM_UPS):
            with refusing_to_wait() if number == WARM_UPS - 1 else nullcontext():
                call()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, call: Call) -> None:
    """`call` is only kept: it owns the weights and inputs, whose memory the graph reads."""
    graph.replay()
