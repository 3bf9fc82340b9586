"""The Switch layer: router, dispatch, experts, combine."""

from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from switch_lm.model.dispatch import ExpertRows
from switch_lm.model.experts import Experts, FeedForward, product_dtype
from switch_lm.routers.noise import Dropout, jitter
from switch_lm.routers.routing import Routing, RoutingRule, expert_capacity, route


class SwitchFeedForward(nn.Module):
    """A feed-forward layer whose router sends each token to `rule.top_k` of its `num_experts` experts.

    `capacity_factor` limits the tokens of an expert in training, `eval_capacity_factor` in `eval()`; None is dropless.
    `selection_bias` adds the buffer `selection_bias_E` (E,), which the training loop updates (DeepSeek-V3);
    `shared_expert` adds a dense feed-forward for every token (DeepSeekMoE). `d_model` and `d_ff` are D and F.
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
        rule: RoutingRule = RoutingRule(),  # noqa: B008  frozen
        router_jitter: float = 0.01,
        router_input_dropout: float = 0.0,
        activation: str = "relu",
        expert_dropout: float = 0.0,
        shared_expert: bool = False,
        selection_bias: bool = False,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_experts, self.rule = num_experts, rule
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.router_jitter, self.router_dropout = router_jitter, Dropout(router_input_dropout)
        self.w_router_DE = nn.Parameter(torch.empty(d_model, num_experts))
        self.experts = Experts(
            num_experts=num_experts, d_model=d_model, d_ff=d_ff, activation=activation, dropout=expert_dropout
        )
        self.shared = FeedForward(d_model=d_model, d_ff=d_ff, activation=activation) if shared_expert else None
        self.selection_bias_E: Tensor | None
        self.register_buffer("selection_bias_E", torch.zeros(num_experts) if selection_bias else None)
        initialize(self, init_scale)

    def forward(self, x_BSD: Tensor, *, capacity_factor: float | EllipsisType | None = ...) -> tuple[Tensor, Routing]:
        """The value to add to the residual (B, S, D), 0 for a dropped token, and the decisions of the router.

        `capacity_factor`, if given, replaces the configured one in this call.
        """
        if isinstance(capacity_factor, EllipsisType):
            capacity_factor = self.capacity_factor if self.training else self.eval_capacity_factor
        num_groups = x_BSD.shape[0] if self.rule.capacity_group == "sequence" else 1
        x_TD = x_BSD.flatten(0, 1)
        routing = route(
            self.router_logits(x_TD),
            capacity=expert_capacity(x_TD.shape[0] // num_groups, self.num_experts, capacity_factor),
            rule=self.rule,
            num_groups=num_groups,
            training=self.training,
            selection_bias_E=self.selection_bias_E,
        )
        y_BSD = self._experts(x_TD, routing).view_as(x_BSD)
        return y_BSD if self.shared is None else y_BSD + self.shared(x_BSD), routing

    def router_logits(self, x_TD: Tensor) -> Tensor:
        """x W_r (T, E), with noise in training, in float32: autocast, which would undo a cast, is off (section 2.4)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.training and self.router_jitter > 0.0:
                x_TD = jitter(x_TD, self.router_jitter)
            x_TD = self.router_dropout(x_TD)
            if not torch.is_grad_enabled():
                return x_TD @ self.w_router_DE
            logits_TE: Tensor = _NarrowProduct.apply(x_TD, self.w_router_DE)  # type: ignore[no-untyped-call]
            return logits_TE

    def _experts(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The sum over a token's kept choices of gate x expert(x) (T, D) (eq. 2)."""
        num_tokens, d_model = x_TD.shape
        top_k = routing.expert_TK.shape[1]
        if num_tokens == top_k == 1 and routing.keeps_all:
            y_1D = self.experts.one_token(x_TD, routing.assigned_TK)
            return y_1D * routing.gate_TK.to(y_1D.dtype)
        rows = ExpertRows.of(routing)
        x_TD = x_TD.to(product_dtype(x_TD))  # before it is moved: half as many bytes under autocast
        x_ND = x_TD if top_k == 1 else x_TD.repeat_interleave(top_k, dim=0)
        x_PD = rows.dispatch(x_ND)
        if routing.capacity is None:
            y_PD = self.experts.ragged(x_PD, routing.load_E)
        else:
            y_PD = self.experts.padded(x_PD.view(self.num_experts, -1, d_model)).flatten(0, 1)
        y_ND, gate_TK = rows.combine(y_PD), routing.gate_TK
        if self.rule.overflow == "passthrough":
            y_ND = torch.where(routing.kept_TK.view(-1, 1), y_ND, x_ND.to(y_ND.dtype))
        elif not routing.keeps_all:
            gate_TK = gate_TK * routing.kept_TK
        y_ND = y_ND * gate_TK.to(y_ND.dtype).view(-1, 1)
        return y_ND if top_k == 1 else y_ND.view(num_tokens, top_k, d_model).sum(dim=1)


class _NarrowProduct(torch.autograd.Function):
    """x w (T, E) for a narrow w (D, E). On a CPU, its gradient as (g' x)' takes a quarter of the time of x' g."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_DE: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, w_DE)
        return x_TD @ w_DE

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, w_DE = ctx.saved_tensors
        return grad_TE @ w_DE.T, (grad_TE.T @ x_TD).T


def initialize(module: nn.Module, init_scale: float) -> None:
    """Draws every matrix from a normal with sigma = sqrt(init_scale / fan_in), truncated at 2 sigma; norms stay 1.

    Our own matrices have the shape (.., fan_in, fan_out), those of nn.Linear (fan_out, fan_in). An embedding has the
    fan-in of the head, to which it may be tied. Source: Switch Transformers, section 2.4 and table 3.
    """
    for part in module.modules():
        fan_in = -1 if isinstance(part, nn.Linear | nn.Embedding) else -2
        for parameter in part.parameters(recurse=False):
            if parameter.dim() >= 2:
                sigma = (init_scale / parameter.shape[fan_in]) ** 0.5
                nn.init.trunc_normal_(parameter, std=sigma, a=-2 * sigma, b=2 * sigma)
