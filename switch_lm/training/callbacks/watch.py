"""What is measured beside training, apart from its steps: what capacity costs, and whether the routers are alive."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.measure.alarm import RouterAlarm, RouterAlarmError
from switch_lm.measure.router_health import router_health
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.transformer import evaluating
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.checkpoints import step_ends

EVERY = 300  # steps
PROBE_CHARACTERS = 128, 512  # at least and at most; between them a quarter of a batch


class WindowLosses(Callback):
    """Three losses of one fixed set of windows, as many as in a training batch, in float32.

    `val/window_loss` with nothing dropped, `val/window_loss_train_capacity` with the capacity of training, and
    `val/window_loss_generation` read character by character: their gaps are what capacity costs. Measured
    after the last validation, and after the first one at or past each multiple of 300 steps.
    """

    def __init__(self, validation_ids: Tensor, config: Config) -> None:
        self.capacity_factor, self.trainer, self.seconds = config.model.capacity_factor, config.trainer, 0.0
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
        self.seconds += time.perf_counter() - started
        pl_module.write({"perf/window_loss_seconds": self.seconds}, step)

    def _is_due(self, step: int) -> bool:
        """Whether the validation at `step`, 0 before training, is one of those in the class's rule."""
        return step == self.trainer.max_steps or 0 <= (step - self.trainer.val_every) // EVERY < step // EVERY

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


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
