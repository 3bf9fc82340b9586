"""What capacity costs: the losses of fixed windows with and without it, and as in generation."""

from typing import Any

import lightning
from torch import Tensor

from switch_lm.config.schema import Config
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model import devices
from switch_lm.model.transformer import choosing_as_trained, evaluating
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.base import Measurement

EVERY = 300  # steps


class WindowLosses(Measurement):
    """Three losses of one fixed set of windows, as many as in a training batch, in float32.

    `val/window_loss` with nothing dropped, `val/window_loss_train_capacity` with the capacity and the rule of training,
    and `val/window_loss_generation` read character by character: the gaps between them are what capacity costs, or for
    expert choice what its training rule, which sees the future, gains or costs. Measured
    after the last validation, and after the first one at or past each multiple of 300 steps.
    """

    name = "window_loss"

    def __init__(self, validation_ids: Tensor, config: Config) -> None:
        self.capacity_factor, self.trainer = config.model.capacity_factor, config.trainer
        self.windows = fixed_windows(
            validation_ids, context_length=config.model.context_length, num_windows=config.data.batch_size
        )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        step, model = trainer.global_step, pl_module.model
        if not self.is_due(step):
            return
        with self.timed(pl_module), evaluating(model):
            ids_BS, target_BS = (tensor.to(pl_module.device) for tensor in self.windows)
            by_character = character_by_character(model, ids_BS, target_BS, before_each=pl_module.stop_if_asked)
            with choosing_as_trained(model):
                as_trained = whole(model, ids_BS, target_BS, capacity_factor=self.capacity_factor)
            nll_BS = {
                "val/window_loss": whole(model, ids_BS, target_BS, capacity_factor=None),
                "val/window_loss_train_capacity": as_trained,
                "val/window_loss_generation": by_character,
            }
            pl_module.run_log.scalars({tag: devices.widened(nll).mean().item() for tag, nll in nll_BS.items()}, step)

    def is_due(self, step: int) -> bool:
        """Whether the validation at `step`, 0 before training, is one of those in the class's rule."""
        return step == self.trainer.max_steps or 0 <= (step - self.trainer.val_every) // EVERY < step // EVERY
