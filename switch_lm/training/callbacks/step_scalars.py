"""The losses and the routing of logged steps."""

from collections.abc import Sequence
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.measure.metrics import routing_scalars
from switch_lm.measure.tallies import StepTally
from switch_lm.training.callbacks.base import MicroBatch, StepCallback


class StepScalars(StepCallback):
    """Writes the means and sums over the micro-batches of every `log_every`-th step."""

    def __init__(self, config: Config) -> None:
        self.log_every, self.blocks = config.logger.log_every, config.model.switch_blocks
        self.has_balance_loss = bool(self.blocks) and config.router.has_balance_loss
        self.per_expert = config.logger.logs_each(config.model.num_experts)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        if step % self.log_every:
            return
        tally = StepTally()
        for micro_batch in micro_batches:
            tally.add(micro_batch["losses"], micro_batch["routings"], micro_batch["sums"])
        scalars = tally.losses
        balance, _ = scalars.pop("train/balance_loss"), scalars.pop("train/total_loss")  # the sum of the others
        if self.has_balance_loss:
            scalars |= {"moe/balance_loss": balance / len(self.blocks)}
        if self.blocks:
            scalars |= routing_scalars(tally.layers, self.blocks, per_expert=self.per_expert)
        module.run_log.scalars(scalars, step)
