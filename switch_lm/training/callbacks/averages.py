"""The averages of the weights that `optim.averages` names: taken in after each step, validated after the last one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from switch_lm.config.legs import read_legs
from switch_lm.config.schema import Config
from switch_lm.measure.evaluation import EvaluationTally, evaluate
from switch_lm.optim.options import AVERAGE
from switch_lm.storage.checkpoint import AVERAGES
from switch_lm.training.callbacks.base import MicroBatch, StepCallback
from switch_lm.training.data import TextData


def share_of_step(average: str, step: int, *, max_steps: int, leg_after: int = 0) -> float:
    """How far step number `step` (from 1) moves an average towards its weights: 1 at the first that counts, 0 before.

    A rate r moves it by (1 - r) / (1 - r^n) at step n. So it is always the mean of the weights so far, those of step i
    counted r^(n - i) times, without a bias towards the start, as in Adam (Kingma and Ba 2015, section 3).
    tail_SHARE is the plain mean of the last round(SHARE * steps) steps, at least one (Polyak and Juditsky 1992; of
    the end alone, Jain et al. 2018): those of the run, or of its last leg, which began after `leg_after` steps.
    """
    match = AVERAGE.fullmatch(average)
    assert match is not None
    number = float(match[2])
    if match[1] is None:
        return (1 - number) / (1 - number**step)
    steps_before = max_steps - max(1, round(number * (max_steps - leg_after)))
    return 1 / (step - steps_before) if step > steps_before else 0.0


class Averages(StepCallback):
    """Keeps averages of the parameters, tied ones once, and validates each as the weights, at their last validation.

    Each is a copy of the weights, from the first step that counts on. Buffers, such as the biases and running figures
    of routers, have no average: all share the last ones. A run that is stopped in a validation continues there.
    """

    def __init__(self, config: Config, data: TextData) -> None:
        self.config, self.data = config, data
        self.leg_after = max((leg.after for leg in read_legs(config.optim.legs)), default=0)
        self.weights: dict[str, dict[str, Tensor]] = {}  # by the name of the average, then of the parameter
        self.tallies = {str(average): EvaluationTally() for average in config.optim.averages}

    @torch.no_grad()
    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        now = dict(module.model.named_parameters())
        for average in self.tallies:
            share = share_of_step(average, step, max_steps=self.config.trainer.max_steps, leg_after=self.leg_after)
            if average in self.weights:
                torch._foreach_lerp_([*self.weights[average].values()], [*now.values()], share)
            elif share > 0:
                self.weights[average] = {name: weight.detach().clone() for name, weight in now.items()}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.config.trainer.max_steps:
            for number, average in enumerate(self.tallies, start=1):
                with self.swapped(pl_module.model, average):
                    self._validate(pl_module, number, average)
            losses = self.figures()["val_loss_averaged"]
            pl_module.run_log.scalars({f"val/loss_average_{average}": losses[average] for average in losses},
                                      trainer.global_step)  # fmt: skip

    def _validate(self, module: Any, number: int, average: str) -> None:
        def after_batch(done: int, of: int) -> None:
            with self.swapped(module.model, average):  # back: this may save
                module.on_measured(number * of + done, of)
                module.stop_if_asked()

        sizes = {"context_length": self.data.context_length, "batch_size": self.data.batch_size}
        factor, precision = self.config.model.eval_capacity_factor, module.precision_name
        evaluate(
            module.model, self.data.validation_ids, **sizes, capacity_factor=factor, precision=precision,
            tally=self.tallies[average], after_batch=after_batch,
        )  # fmt: skip

    @contextmanager
    def swapped(self, model: nn.Module, average: str) -> Iterator[None]:
        """Exchanges the model's weights and this average for the block. Only memory changes hands: no bit changes."""
        self._swap(model, average)
        try:
            yield
        finally:
            self._swap(model, average)

    def _swap(self, model: nn.Module, average: str) -> None:
        others = self.weights[average]
        for name, weight in model.named_parameters():
            weight.data, others[name] = others[name], weight.data
        torch.clear_autocast_cache()  # of the weights in bf16

    def figures(self) -> dict[str, Any]:
        return {"val_loss_averaged": {average: tally.evaluation.loss for average, tally in self.tallies.items()}}

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[AVERAGES] = self.weights  # where `storage.checkpoint.read_model` looks

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.weights = checkpoint[AVERAGES]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step < self.config.trainer.max_steps:  # the leg before was validated
            self.tallies = {average: EvaluationTally() for average in self.tallies}
        for weights in self.weights.values():
            weights.update({name: weight.to(pl_module.device) for name, weight in weights.items()})

    def state_dict(self) -> dict[str, Any]:
        return {average: tally.state_dict() for average, tally in self.tallies.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for average, state in state_dict.items():
            self.tallies[average].load_state_dict(state)
