"""Expert choice: each expert takes its most probable tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.base import Promise
from switch_lm.routers.cutoffs import CutoffRouter
from switch_lm.routers.loops import chosen_by_experts
from switch_lm.routers.options import ExpertChoiceOptions
from switch_lm.routers.routing import Routing


class ExpertChoiceRouter(CutoffRouter):
    """p = softmax(x W_r); in training each expert takes its `capacity` most probable tokens, and the gate is p.

    A token's experts depend on all others of its batch, later ones included. So evaluation and generation give a token
    to the experts whose stored cut-off its p exceeds: the moving average of the lowest p that they took.
    Source: Zhou et al. 2022 (Mixture-of-Experts with Expert Choice Routing).
    """

    name = "expert_choice"
    Options = ExpertChoiceOptions
    options: ExpertChoiceOptions
    oracle = staticmethod(chosen_by_experts)

    def __init__(self, *args: Any, num_experts: int, **sizes: Any) -> None:
        super().__init__(*args, num_experts=num_experts, first_cutoff=1.0 / num_experts, **sizes)

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
        prob_TE = logits_TE.softmax(dim=-1)
        if capacity is None or not self.chooses_as_trained:
            return self.above(prob_TE, self.cutoff_E, logits_TE=logits_TE, probs_TE=prob_TE)
        num_tokens, num_experts = prob_TE.shape
        prob_GEt = prob_TE.detach().unflatten(0, (num_groups, -1)).mT.contiguous()
        start_G11 = torch.arange(num_groups, device=prob_TE.device)[:, None, None] * (num_tokens // num_groups)
        token_GEC = start_G11 + prob_GEt.topk(capacity, dim=-1).indices
        expert_GEC = torch.arange(num_experts, device=prob_TE.device)[:, None].expand_as(token_GEC)
        token_N, expert_N = token_GEC.flatten(), expert_GEC.flatten()
        return Routing.listed(
            token_N=token_N,
            expert_N=expert_N,
            gate_N=prob_TE.flatten().index_select(0, token_N * num_experts + expert_N),
            scores_TE=prob_TE,
            probs_TE=prob_TE,
            logits_TE=logits_TE,
            capacity=capacity,
            num_groups=num_groups,
        )

    @torch.no_grad()
    def after_step(self, routings: Sequence[Routing]) -> None:
        """Moves the cut-offs towards the lowest p that each expert took, its mean over groups and micro-batches."""
        lowest = [
            routing.gate_N.view(routing.num_groups, self.num_experts, -1).amin(dim=-1).mean(dim=0)
            for routing in routings
            if routing.used_N is None
        ]
        if lowest:
            self.follow(torch.stack(lowest).mean(dim=0))

    def promise(self, *, training: bool, limited: bool) -> Promise:
        chooses = training and limited
        return Promise(
            sees_future=chooses,
            depends_on_rows=chooses and self.options.num_groups(2) == 1,
            fixed_computation=chooses,
            experts_per_token=None,
            keeps_mean=bool(self.steps > 0),
        )
