"""What is measured beside training, apart from its steps: what capacity costs, and whether the routers are alive."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from switch_lm.alarm import RouterAlarm, RouterAlarmError
from switch_lm.callbacks import Clock
from switch_lm.model import evaluating
from switch_lm.router_health import router_health
from switch_lm.saving import step_ends
from switch_lm.scoring import character_by_character, whole
from switch_lm.settings import Config
from switch_lm.windows import fixed_windows

AT_MOST_EVERY, AT_MOST_SHARE = 300, 0.03  # steps; of a run's time
PROBE_CHARACTERS = 128, 512  # at least and at most; between them a quarter of a batch


class WindowLosses(Callback):
    """After validations three losses of one fixed set of windows, as many as in a training batch, in float32.

    `val/window_loss` with nothing dropped, `val/window_loss_train_capacity` with the capacity of training, and
    `val/window_loss_generation` read character by character: their gaps are what capacity costs. After the last
    validation in any case; before it at most every 300 steps, and as long as all stay below 3 % of the run's time.
    """

    def __init__(self, validation_ids: Tensor, config: Config, clock: Clock) -> None:
        self.capacity_factor, self.trainer, self.clock = config.model.capacity_factor, config.trainer, clock
        self.seconds, self.last_seconds = 0.0, 0.0  # in all; of the last time
        self.ids_BS, self.target_BS = fixed_windows(
            validation_ids, context_length=config.model.context_length, num_windows=config.data.batch_size
        )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if pl_module.writer is None or not self._is_due(step):
            return
        started, model = time.perf_counter(), pl_module.model
        text = self.ids_BS.to(pl_module.device), self.target_BS.to(pl_module.device)
        with evaluating(model):
            nll_BS = {
                "val/window_loss": whole(model, *text, capacity_factor=None),
                "val/window_loss_train_capacity": whole(model, *text, capacity_factor=self.capacity_factor),
                "val/window_loss_generation": character_by_character(model, *text),
            }
        pl_module.write({tag: nll.double().mean().item() for tag, nll in nll_BS.items()}, step)
        self.last_seconds = time.perf_counter() - started
        self.seconds += self.last_seconds
        pl_module.write({"perf/window_loss_seconds": self.seconds}, step)

    def _is_due(self, step: int) -> bool:
        """Room is left for the last time, which always comes; the run's time is foretold from that so far."""
        last, every = self.trainer.max_steps, self.trainer.val_every
        stride = -(-AT_MOST_EVERY // every) * every
        if step == last or step % stride or step == 0 or last - step < AT_MOST_EVERY:
            return step == last
        return self.seconds + 2 * self.last_seconds <= AT_MOST_SHARE * self.clock.seconds * last / step

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "last_seconds": self.last_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.last_seconds = state_dict["seconds"], state_dict["last_seconds"]


class RouterWatch(Callback):
    """Looks at every router each so many steps, on a fixed piece of the training text, and says once if one is dead.

    In training mode and float32, outside the compiled graph, with the random state put back: training is not touched.
    """

    def __init__(self, training_ids: Tensor, config: Config) -> None:
        self.config, self.seconds = config, 0.0
        self.alarm = RouterAlarm(config.health, alpha=config.alpha)
        context_length, (least, most) = config.model.context_length, PROBE_CHARACTERS
        characters = min(most, max(least, config.data.batch_size * context_length // 4))
        self.ids_BS, self.target_BS = fixed_windows(
            training_ids, context_length=context_length, num_windows=max(1, characters // context_length)
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, health = trainer.global_step, self.config.health
        due = health.every > 0 and step % health.every == 0 and step_ends(trainer, batch_idx)
        if due and self.config.model.num_switch_layers:
            self._look(pl_module, step)

    def _look(self, pl_module: Any, step: int) -> None:
        started, device = time.perf_counter(), pl_module.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(self.config.seed)
            text = self.ids_BS.to(device), self.target_BS.to(device)
            found = router_health(pl_module.model, *text, alpha=self.config.alpha)
        for layer, health in enumerate(found):
            scalars = health.scalars()
            pl_module.write({f"health/layer_{layer:02d}/{name}": scalars[name] for name in scalars}, step)
        self.seconds += time.perf_counter() - started
        pl_module.write({"perf/router_health_seconds": self.seconds}, step)
        for message in self.alarm.look(found, step=step):
            if pl_module.writer is not None:
                pl_module.writer.add_text("router alarm", message, step)
            if self.config.router_alarm == "warn":
                print(f"warning: {message}", file=sys.stderr)
        if self.config.router_alarm == "error" and self.alarm.standing:
            raise RouterAlarmError("\n".join(self.alarm.messages))

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "alarm": self.alarm.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.alarm.load_state_dict(state_dict["alarm"])
