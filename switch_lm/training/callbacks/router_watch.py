"""Whether the routers are alive: a check of each every few steps, and one warning if a router is dead or collapsed."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.measure.alarm import RouterAlarm, RouterAlarmError
from switch_lm.measure.router_health import router_health
from switch_lm.routers.noise import seed_noise
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.base import Measurement, MicroBatch

PROBE_CHARACTERS = 128, 512  # at least and at most; between them a quarter of a batch


@contextmanager
def _trainable(frozen: Sequence[Tensor]) -> Iterator[None]:
    """In its block the weights that are not trained have a gradient, too: a router that is kept is not dead."""
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


class RouterWatch(Measurement):
    """Measures the health of every router every `health.every` steps, on a fixed piece of the training text.

    It runs in training mode and float32, outside the compiled graph, and restores the random state.
    """

    name = "router_health"

    def __init__(self, training_ids: Tensor, config: Config) -> None:
        self.config = config
        alpha = config.alpha if config.balance.adds_loss else None
        self.alarm = RouterAlarm(config.health, alpha=alpha, blocks=config.model.switch_blocks)
        context_length, (least, most) = config.model.context_length, PROBE_CHARACTERS
        characters = min(most, max(least, config.data.batch_size * context_length // 4))
        self.windows = fixed_windows(
            training_ids, context_length=context_length, num_windows=max(1, characters // context_length)
        )
        self.alike = bool(self.windows[0].min() == self.windows[0].max())  # one character: nothing to choose by

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        every, device = self.config.health.every, module.device
        if every == 0 or step % every or self.alike or not self.config.model.num_switch_layers:
            return
        with (
            self.timed(module),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.compiler.set_stance("force_eager"),
            _trainable(module.frozen),
        ):
            seed_noise(self.config.seed, device)
            ids_BS, target_BS = (tensor.to(device) for tensor in self.windows)
            layers = router_health(module.model, ids_BS, target_BS, alpha=self.config.balance_weight)
            figures = {
                f"health/layer_{layer:02d}/language_gradient": health.language_gradient
                for layer, health in zip(self.config.model.switch_blocks, layers, strict=True)
            }
            module.run_log.scalars(figures, step)
        for message in self.alarm.check(layers, step=step):
            module.run_log.text("summary/router alarm", message, step)
            if self.config.router_alarm == "warn":
                print(f"warning: {message}", file=sys.stderr)
        if self.config.router_alarm == "error" and self.alarm.standing:
            raise RouterAlarmError("\n".join(self.alarm.messages))

    def figures(self) -> dict[str, Any]:
        return {"router_alarms": list(self.alarm.messages)} | super().figures()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"alarm": self.alarm.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.alarm.load_state_dict(state_dict["alarm"])
