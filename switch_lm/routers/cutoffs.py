"""Routers whose experts take the tokens above a stored cut-off."""

from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.base import Router
from switch_lm.routers.options import CutoffOptions
from switch_lm.routers.routing import Routing


class CutoffRouter(Router):
    """Each expert has a cut-off, a moving average over the steps of training. A token has from none to all experts.

    A step's routing uses the cut-offs of before the step.
    """

    Options = CutoffOptions
    options: CutoffOptions
    cutoff_E: Tensor  # float32
    steps: Tensor  # 0-d int64; how many steps the cut-offs have seen

    def __init__(self, *args: Any, first_cutoff: float, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.register_buffer("cutoff_E", torch.full((self.num_experts,), first_cutoff))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def above(
        self, score_TE: Tensor, cutoff_E: Tensor, *, logits_TE: Tensor, probs_TE: Tensor | None = None
    ) -> Routing:
        """The routing in which each expert takes the tokens whose score exceeds its cut-off; gates are scores."""
        num_tokens, num_experts = score_TE.shape
        token_TE = torch.arange(num_tokens, device=score_TE.device)[:, None].expand(-1, num_experts)
        expert_TE = torch.arange(num_experts, device=score_TE.device).expand(num_tokens, -1)
        return Routing.listed(
            token_N=token_TE.flatten(),
            expert_N=expert_TE.flatten(),
            gate_N=score_TE.flatten(),
            scores_TE=score_TE,
            probs_TE=probs_TE,
            logits_TE=logits_TE,
            used_N=(score_TE.detach() > cutoff_E).flatten(),
        )

    @torch.no_grad()
    def follow(self, cutoff_E: Tensor) -> None:
        """Moves the stored cut-offs towards those of a step; the first step's are taken as they are."""
        kept = torch.where(self.steps == 0, 0.0, self.options.cutoff_ema)
        self.cutoff_E.copy_(kept * self.cutoff_E + (1.0 - kept) * cutoff_E)
        self.steps += 1
