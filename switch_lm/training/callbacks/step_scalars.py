"""The losses and the routing of logged steps."""

import math
from collections.abc import Sequence
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.measure.metrics import perplexity_of, routing_scalars
from switch_lm.measure.tallies import StepTally
from switch_lm.training.callbacks.base import MicroBatch, StepCallback


class StepScalars(StepCallback):
    """Writes the means and sums over the micro-batches of every `log_every`-th step."""

    def __init__(self, config: Config) -> None:
        self.log_every, self.blocks = config.logger.log_every, config.model.switch_blocks
        self.per_expert = config.logger.logs_each(config.model.num_experts)

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        if step % self.log_every:
            return
        tally = StepTally()
        for micro_batch in micro_batches:
            tally.add(micro_batch["losses"], micro_batch["routings"], micro_batch["sums"])
        losses = tally.losses
        of_layers = routing_scalars(tally.layers, self.blocks, per_expert=self.per_expert)
        module.run_log.scalars(losses | as_perplexity("train", losses["train/loss"]) | of_layers, step)
        for block, sums in zip(self.blocks, tally.layers, strict=True):
            module.run_log.histogram(f"moe/layer_{block:02d}/expert_of_token", sums.load_E.tolist(), step)


def as_perplexity(group: str, loss: float) -> dict[str, float]:
    """Other units of a loss in nats per character."""
    return {f"{group}/perplexity": perplexity_of(loss), f"{group}/bits_per_character": loss / math.log(2)}
