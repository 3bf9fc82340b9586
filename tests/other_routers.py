"""A router outside of the package, with which tests show that whatever looks into a routing takes any router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from switch_lm.config.keys import key
from switch_lm.routers.base import Promise, Router
from switch_lm.routers.options import NAME_OF_ROUTER, RouterOptions
from switch_lm.routers.oracles import Expected
from switch_lm.routers.routing import Routing


@dataclass
class ChosenOptions(RouterOptions):
    """Those of every router."""

    name: str = key("test_expert_choice", NAME_OF_ROUTER)


def by_a_loop(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """The oracle: expert by expert the C most probable tokens; without a capacity, and in evaluation, a cut-off."""
    p_TE = torch.softmax(x_TD @ weights["w_DE"], dim=-1)
    cutoff, pairs = weights["cutoff_E"].tolist(), []
    for e in range(p_TE.shape[1]):
        p = p_TE[:, e].tolist()
        if training and capacity is not None:
            pairs += [(t, e) for t in sorted(range(len(p)), key=lambda t: -p[t])[:capacity]]
        else:
            pairs += [(t, e) for t in range(len(p)) if p[t] > cutoff[e]]
    pairs.sort()
    token, expert = [t for t, _ in pairs], [e for _, e in pairs]
    return Expected(
        token=token,
        selected=expert,
        assigned=expert,
        kept=[True] * len(pairs),
        gate_N=p_TE[token, expert],
        scores_TE=p_TE,
        probs_TE=p_TE,
    )


class ExpertChoice(Router):
    """Expert choice (Zhou 2022) in training with a capacity; else an expert takes tokens above its cut-off.

    A token has from none to all experts.
    """

    name = "test_expert_choice"
    Options = ChosenOptions
    oracle = staticmethod(by_a_loop)
    cutoff_E: Tensor

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.register_buffer("cutoff_E", torch.tensor([0.15, 0.3, 0.45, 0.45]))

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
        p_TE = logits_TE.softmax(dim=-1)
        num_tokens, num_experts = p_TE.shape
        if self.training and capacity is not None:
            token_EC, used_N = self.best(p_TE.detach(), capacity), None
            expert_N = torch.arange(num_experts, device=p_TE.device).repeat_interleave(capacity)
            token_N = token_EC.flatten()
        else:
            token_N = torch.arange(num_tokens, device=p_TE.device).repeat_interleave(num_experts)
            expert_N = torch.arange(num_experts, device=p_TE.device).repeat(num_tokens)
            used_N, capacity = (p_TE.detach() > self.cutoff_E).flatten(), None
        return Routing.listed(
            token_N=token_N,
            expert_N=expert_N,
            gate_N=self.gates(p_TE[token_N, expert_N][:, None])[:, 0],
            scores_TE=p_TE,
            logits_TE=logits_TE,
            used_N=used_N,
            capacity=capacity,
        )

    def best(self, p_TE: Tensor, capacity: int) -> Tensor:
        """The tokens that each expert takes (E, C)."""
        return p_TE.T.topk(capacity, dim=1).indices

    def aux_losses(self, routing: Routing) -> dict[str, Tensor]:
        return {}

    def promise(self, *, training: bool, limited: bool) -> Promise:
        chooses = training and limited
        return Promise(sees_future=chooses, depends_on_rows=chooses, fixed_computation=chooses, experts_per_token=None)
