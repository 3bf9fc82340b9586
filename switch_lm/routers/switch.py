"""The Switch router: each token goes to the expert with the largest probability."""

from dataclasses import replace

import torch
from torch import Tensor

from switch_lm.routers.base import Promise, Router, largest
from switch_lm.routers.loops import softmax_choice
from switch_lm.routers.options import SwitchOptions
from switch_lm.routers.routing import Routing


class SwitchRouter(Router):
    """p = softmax(x W_r) over all experts; the largest is selected, and its p is the gate.

    Source: Switch Transformers, section 2.1 and eq. 1 and 2.
    """

    name = "switch"
    Options = SwitchOptions
    oracle = staticmethod(softmax_choice)
    options: SwitchOptions

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
        probs_TE = logits_TE.softmax(dim=-1)  # eq. 1
        expert_TK = self.select(logits_TE, probs_TE)
        return self.token_choice(
            expert_TK, probs_TE, logits_TE=logits_TE, capacity=capacity, num_groups=num_groups, by_choice=self.by_choice
        )

    def select(self, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        """The experts of each token (T, K), int64: the most probable, or drawn without replacement in training."""
        if not self._draws(self.training):
            return self.top_experts(probs_TE)
        gumbel_TE = -torch.empty_like(logits_TE).exponential_().log()
        drawn_TE = logits_TE.detach() + gumbel_TE  # the largest of these is a draw from the softmax
        return largest(drawn_TE, self.options.top_k)

    @property
    def by_choice(self) -> bool:
        """Whether all first choices queue before all second ones."""
        return False

    def _draws(self, training: bool) -> bool:
        return training and self.options.selection == "sample"

    def gates(self, score_TK: Tensor) -> Tensor:
        """p, or p / p.detach(), and 1 where p underflows to 0."""
        if self.options.gate_scale == "straight_through":
            return 1.0 + (score_TK - score_TK.detach()) / score_TK.detach().clamp(min=1e-20)
        return score_TK

    def promise(self, *, training: bool, limited: bool) -> Promise:
        promise = super().promise(training=training, limited=limited)
        return replace(promise, draws=self._draws(training), varies_gates=self.options.gate_scale == "probability")
