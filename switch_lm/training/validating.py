"""A validation of the whole split, which can be stopped after any batch and continue in another process."""

from typing import Any

from switch_lm.measure.evaluation import evaluate
from switch_lm.measure.tallies import ValidationTally
from switch_lm.model.transformer import choosing_as_trained


class Validation(ValidationTally):
    """`step`: how many steps were done before it; -1: none has begun. `num_rows`: those in metrics.jsonl before it."""

    def __init__(self, step: int = -1, *, num_rows: int = 0) -> None:
        super().__init__()
        self.step, self.num_rows, self.is_done = step, num_rows, step < 0

    def end(self) -> None:
        self.num_rows, self.is_done = 0, True

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"step": self.step, "num_rows": self.num_rows, "is_done": self.is_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.step, self.num_rows, self.is_done = state["step"], state["num_rows"], state["is_done"]


def evaluate_at_capacity(module: Any, data: Any) -> None:
    """The whole validation split with the capacity and the rule of training, in batches of its size."""

    def after_batch(done: int, of: int) -> None:
        module.on_measured(done, of)
        if done < of:
            module.stop_if_asked()

    config = module.config
    with choosing_as_trained(module.model):
        evaluate(
            module.model,
            data.validation_ids,
            context_length=config.model.context_length,
            batch_size=config.data.batch_size,
            capacity_factor=config.model.capacity_factor,
            precision=module.precision_name,
            tally=module.at_capacity,
            after_batch=after_batch,
        )
