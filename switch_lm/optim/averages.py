"""Averages of the weights over the steps of a run, which can validate better than the last ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from switch_lm.optim.options import AVERAGE


def share_of_step(average: str, step: int, *, max_steps: int) -> float:
    """How far step number `step` (from 1) moves an average towards its weights: 1 at the first that counts, 0 before.

    A rate r moves it by (1 - r) / (1 - r^n) at step n. So it is always the mean of the weights so far, those of step i
    counted r^(n - i) times, without a bias towards the start, as in Adam (Kingma and Ba 2015, section 3).
    tail_SHARE is the plain mean of the last round(SHARE * max_steps) steps, at least one (Polyak and Juditsky 1992; of
    the end alone, Jain et al. 2018).
    """
    match = AVERAGE.fullmatch(average)
    assert match is not None
    number = float(match[2])
    if match[1] is None:
        return (1 - number) / (1 - number**step)
    steps_before = max_steps - max(1, round(number * max_steps))
    return 1 / (step - steps_before) if step > steps_before else 0.0


class WeightAverages:
    """Averages of a model's parameters, tied ones once. Each is a copy of them, from the first step that counts on.

    Buffers, such as the biases and running figures of routers, have no average: all share the last ones.
    """

    def __init__(self, names: Sequence[str], *, max_steps: int) -> None:
        self.names, self.max_steps = names, max_steps
        self.weights: dict[str, dict[str, Tensor]] = {}  # by the name of the average, then of the parameter

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after step number `step`. Each step must come once, in order."""
        now = dict(model.named_parameters())
        for average in self.names:
            share = share_of_step(average, step, max_steps=self.max_steps)
            if average in self.weights:
                torch._foreach_lerp_([*self.weights[average].values()], [*now.values()], share)
            elif share > 0:
                self.weights[average] = {name: weight.detach().clone() for name, weight in now.items()}

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
