"""How much memory do a model and its training steps take? A process of its own: `python -m bench.memory OVERRIDES`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from bench import ours
from switch_lm.hardware import keep_freed_memory

STEPS = 3
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc


def resident(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    keep_freed_memory()
    config = ours.composed(*sys.argv[1:])
    precision = ours.hardware(config).precision
    draw = ours.batches(batch_size=config.data.batch_size, context_length=config.model.context_length)
    given = [draw(number) for number in range(STEPS)]
    torch.ones(8, 8).exp().sum().item()  # threads are started
    before = resident("VmRSS")
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # then a peak during the imports may count, which is lower than that of a step
        print(f"the peak could not be reset: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} KiB", file=sys.stderr)
    made = ours.module(config, precision=precision, compiled=False)
    optimizer = made.configure_optimizers()["optimizer"]
    for batch in given:
        ours.bare_step(made, optimizer, batch, precision=precision)
    states = [value for inner in optimizer.optimizers for state in inner.state.values() for value in state.values()]
    tensors = [*made.parameters(), *(value for value in states if isinstance(value, torch.Tensor))]
    kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    print(json.dumps({"growth": resident("VmHWM") - before, "kept": kept}))


if __name__ == "__main__":
    main()
