"""Seconds of a training step of each model, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from bench import ours
from bench.machine import processor

from study.plan import COMMON, DENSE, RECIPES, step_name
from study.timing import in_turns
from switch_lm.training.data import Batch
from switch_lm.training.hardware import all_threads

REPETITIONS = 15


def seconds(keys: Mapping[str, str]) -> dict[str, Any]:
    """By name, of models with these keys, eager and with all threads; routers have spread their load before."""
    torch.set_num_threads(all_threads())
    configs = {name: ours.composed(*own.split(), *COMMON, "trainer.max_steps=1000000") for name, own in keys.items()}
    shapes = {name: (one.data.batch_size, one.model.context_length) for name, one in configs.items()}
    draws = {(b, s): ours.batches(batch_size=b, context_length=s) for b, s in set(shapes.values())}

    def step(name: str) -> Any:
        config = configs[name]
        made = ours.training_step(config, precision="fp32", compiled=False, weights=ours.settled(config))
        return lambda drawn: made(drawn[shapes[name]])

    def draw(number: int) -> dict[tuple[int, int], Batch]:
        return {shape: batches(number) for shape, batches in draws.items()}

    made = in_turns(
        {name: partial(step, name) for name in keys}, draw, REPETITIONS, baseline=step_name(RECIPES, DENSE, "plays")
    )
    return made | {"machine": processor()}
