"""Expert threshold routing: a token goes to every expert whose cut-off its score exceeds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.balance import exceeded_by
from switch_lm.routers.base import Promise
from switch_lm.routers.cutoffs import CutoffRouter
from switch_lm.routers.loops import above_cutoffs
from switch_lm.routers.options import ThresholdOptions
from switch_lm.routers.routing import Routing


class ThresholdRouter(CutoffRouter):
    """s = sigmoid(x W_r), the gate; a token goes to every expert whose stored cut-off its s exceeds. No capacity.

    The cut-off is a moving average of the s that K / E of a step's tokens exceed. In the first steps of training
    (`router.warmup_steps`, at most a third of the run) each expert takes its K T / E best tokens instead, of
    equal ones at the end none.
    Source: Expert Threshold routing, arXiv 2603.11535.
    """

    name = "threshold"
    Options = ThresholdOptions
    options: ThresholdOptions
    oracle = staticmethod(above_cutoffs)
    warmup: Tensor  # 0-d int64; how many steps that is in this run

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, first_cutoff=0.5, **sizes)
        self.register_buffer("warmup", torch.tensor(self.options.warmup_steps))

    def prepare(self, counts_V: Tensor, *, max_steps: int | None = None) -> None:
        if max_steps is not None:
            self.warmup.fill_(min(self.options.warmup_steps, max_steps // 3))

    def assign(
        self,
        x_TD: Tensor,
        logits_TE: Tensor,
        *,
        ids_T: Tensor | None,
        position_T: Tensor | None,
        capacity: int | None,
        num_groups: int,
    ) -> Routing:
        score_TE, cutoff_E = logits_TE.sigmoid(), self.cutoff_E
        if self.chooses_as_trained:
            cutoff_E = torch.where(self.steps < self.warmup, self._even(score_TE), cutoff_E)
        return self.above(score_TE, cutoff_E, logits_TE=logits_TE)

    def _even(self, score_TE: Tensor) -> Tensor:
        """The cut-offs (E) that K / E of these tokens exceed, rounded up."""
        return exceeded_by(score_TE.detach(), -(-self.options.top_k * score_TE.shape[0] // self.num_experts))

    @torch.no_grad()
    def after_step(self, routings: Sequence[Routing]) -> None:
        """Moves the cut-offs towards those of all tokens of the step."""
        self.follow(self._even(torch.cat([routing.scores_TE for routing in routings])))

    def promise(self, *, training: bool, limited: bool) -> Promise:
        step, warmup = int(self.steps), int(self.warmup)
        warms_up = training and step < warmup
        state = f"in its warm-up (step {step} of {warmup})" if warms_up else f"after its warm-up of {warmup} steps"
        return Promise(
            sees_future=warms_up,
            depends_on_rows=warms_up,
            fixed_computation=False,
            experts_per_token=None,
            keeps_mean=step > 0 and step >= warmup,
            state=state if training and warmup else "",
        )
