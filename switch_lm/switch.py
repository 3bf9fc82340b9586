"""One Switch layer: router, dispatch, experts, combine."""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor, nn

from switch_lm.dispatch import Places
from switch_lm.experts import Experts
from switch_lm.routing import Routing, expert_capacity, jitter, route


class SwitchFeedForward(nn.Module):
    """A feed-forward layer in which a router sends each token to one of `num_experts` experts.

    `capacity_factor` limits an expert's tokens in training, `eval_capacity_factor` in `eval()`; None is dropless.
    Source: Switch Transformers, sections 2.1, 2.2 and 2.4.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int,
        num_experts: int,
        capacity_factor: float | None = 1.25,
        eval_capacity_factor: float | None = None,
        router_jitter: float = 0.01,
        activation: str = "relu",
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.w_router_DE = nn.Parameter(torch.empty(d_model, num_experts))
        self.experts = Experts(num_experts=num_experts, d_model=d_model, d_ff=d_ff, activation=activation)
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.router_jitter = router_jitter

    def forward(self, x_BSD: Tensor, *, capacity_factor: float | EllipsisType | None = ...) -> tuple[Tensor, Routing]:
        """Returns what the experts add (B, S, D), 0 for a dropped token, and what the router decided.

        `capacity_factor`, where given, stands in for the configured one in this call.
        """
        if isinstance(capacity_factor, EllipsisType):
            capacity_factor = self.capacity_factor if self.training else self.eval_capacity_factor
        x_TD = x_BSD.flatten(0, 1)
        routing = route(
            self.router_logits(x_TD),
            capacity=expert_capacity(x_TD.shape[0], self.num_experts, capacity_factor),
        )
        return self._experts(x_TD, routing).view_as(x_BSD), routing

    def router_logits(self, x_TD: Tensor) -> Tensor:
        """x W_r in float32 (T, E). Autocast is switched off here: it would undo a cast."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.training and self.router_jitter > 0.0:
                x_TD = jitter(x_TD, self.router_jitter)
            return x_TD @ self.w_router_DE

    def _experts(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The sum over a token's kept choices of gate x expert(x) (T, D) (eq. 2)."""
        num_tokens, d_model = x_TD.shape
        top_k = routing.expert_TK.shape[1]
        places = Places.of(routing)
        x_PD = places.dispatch(x_TD[:, None].expand(num_tokens, top_k, d_model).reshape(-1, d_model))
        if routing.capacity is None:
            y_PD = self.experts.ragged(x_PD, routing.load_E)
        else:
            y_PD = self.experts.padded(x_PD.view(self.num_experts, routing.capacity, d_model)).flatten(0, 1)
        y_TKD = places.combine(y_PD).view(num_tokens, top_k, d_model)
        return (y_TKD * routing.gate_TK.to(y_TKD.dtype)[..., None]).sum(dim=1)
