"""The averages of the weights that `optim.averages` names: taken in after each step, validated after the last one."""

from collections.abc import Sequence
from typing import Any

import lightning

from switch_lm.config.schema import Config
from switch_lm.measure.evaluation import EvaluationTally, evaluate
from switch_lm.optim.averages import WeightAverages
from switch_lm.storage.checkpoint import AVERAGES
from switch_lm.training.callbacks.base import MicroBatch, StepCallback
from switch_lm.training.data import TextData

VALIDATED = "averages_validated"  # of a checkpoint: how far


class Averages(StepCallback):
    """Validates each average as the weights are validated, at the end of their last validation.

    A run that is stopped then continues there. What is saved meanwhile are the run's own weights and the averages.
    """

    def __init__(self, config: Config, data: TextData) -> None:
        self.config, self.data, names = config, data, [str(average) for average in config.optim.averages]
        self.averages = WeightAverages(names, max_steps=config.trainer.max_steps)
        self.tallies = {name: EvaluationTally() for name in names}

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        self.averages.update(module.model, step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step < self.config.trainer.max_steps:
            return
        for number, name in enumerate(self.tallies, start=1):
            with self.averages.swapped(pl_module.model, name):
                self._validate(pl_module, number, name)
        losses = {f"val/loss_average_{name}": loss for name, loss in self._losses().items()}
        pl_module.run_log.scalars(losses, trainer.global_step)

    def _validate(self, module: Any, number: int, name: str) -> None:
        def after_batch(done: int, of: int) -> None:
            with self.averages.swapped(module.model, name):  # back: this may save
                module.on_measured(number * of + done, of)
                module.stop_if_asked()

        evaluate(
            module.model,
            self.data.validation_ids,
            context_length=self.data.context_length,
            batch_size=self.data.batch_size,
            capacity_factor=self.config.model.eval_capacity_factor,
            precision=module.precision_name,
            tally=self.tallies[name],
            after_batch=after_batch,
        )

    def _losses(self) -> dict[str, float]:
        return {name: tally.evaluation.loss for name, tally in self.tallies.items()}

    def figures(self) -> dict[str, Any]:
        return {"val_loss_averaged": self._losses()}

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[AVERAGES] = self.averages.weights
        checkpoint[VALIDATED] = {name: tally.state_dict() for name, tally in self.tallies.items()}

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.averages.weights = checkpoint[AVERAGES]
        for name, tally in self.tallies.items():
            tally.load_state_dict(checkpoint[VALIDATED][name])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for weights in self.averages.weights.values():
            weights.update({name: weight.to(pl_module.device) for name, weight in weights.items()})
