"""The Switch layer: router, dispatch, experts, combine."""

from types import EllipsisType

import torch
from torch import Tensor, nn

from switch_lm.model import devices
from switch_lm.model.dispatch import ExpertRows, TokenRows
from switch_lm.model.experts import Experts, FeedForward, product_dtype
from switch_lm.routers.base import Router
from switch_lm.routers.options import expert_capacity
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter

# An H200 multiplies one batch of padded matrices in 0.7 to 0.75 of the time of as many rows in groups.
EMPTY_SLOTS_PAY = 1.3  # up to so many times as many slots as assignments
PADDING, UNEVEN = 64, 4  # rows: a multiple of this, for few shapes, and at most so many times the assignments


class SwitchFeedForward(nn.Module):
    """A feed-forward layer whose router sends each token to some of its `num_experts` experts.

    `capacity_factor` limits the tokens of an expert in training, `eval_capacity_factor` in `eval()`; None is dropless.
    `router`: by default a `SwitchRouter`, one expert per token; its sizes must be those of the layer. `shared_expert`
    adds a dense feed-forward for every token (DeepSeekMoE). `d_model` and `d_ff` are D and F.
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
        router: Router | None = None,
        activation: str = "relu",
        expert_dropout: float = 0.0,
        shared_expert: bool = False,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.router = SwitchRouter(d_model=d_model, num_experts=num_experts) if router is None else router
        if self.router.num_experts != num_experts:
            raise ValueError(
                f"the router is made for {self.router.num_experts} experts and the layer for {num_experts}: give both "
                "the same num_experts"
            )
        if (w_DE := self.router.w_DE) is not None and w_DE.shape[0] != d_model:
            raise ValueError(
                f"the router is made for d_model={w_DE.shape[0]} and the layer for {d_model}: give both the same"
            )
        self.experts = Experts(
            num_experts=num_experts, d_model=d_model, d_ff=d_ff, activation=activation, dropout=expert_dropout
        )
        self.shared = FeedForward(d_model=d_model, d_ff=d_ff, activation=activation) if shared_expert else None
        initialize(self, init_scale)

    def forward(
        self,
        x_BSD: Tensor,
        *,
        ids_BS: Tensor | None = None,
        position_S: Tensor | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> tuple[Tensor, Routing]:
        """The value to add to the residual (B, S, D), 0 for a dropped token, and the decisions of the router.

        `ids_BS` and `position_S`: the characters and their positions, for a router that reads them.
        `capacity_factor`, if given, replaces the configured one in this call.
        """
        if isinstance(capacity_factor, EllipsisType):
            capacity_factor = self.capacity_factor if self.training else self.eval_capacity_factor
        num_rows = x_BSD.shape[0]
        num_groups = self.router.options.num_groups(num_rows)
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(
            x_TD,
            ids_T=None if ids_BS is None else ids_BS.flatten(),
            position_T=position_S if position_S is None or num_rows == 1 else position_S.repeat(num_rows),
            capacity=expert_capacity(x_TD.shape[0] // num_groups, self.num_experts, capacity_factor),
            num_groups=num_groups,
        )
        y_BSD = self.combined(x_TD, routing).view_as(x_BSD)
        return y_BSD if self.shared is None else y_BSD + self.shared(x_BSD), routing

    def combined(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The sum over a token's kept assignments of gate x expert(x) (T, D) (eq. 2)."""
        if routing.token_N.numel() == 1 == x_TD.shape[0] and routing.keeps_all:
            y_1D = self.experts.one_token(x_TD, routing.assigned_N)
            return y_1D * routing.gate_N.to(y_1D.dtype)[:, None]
        if routing.used_N is not None and not self.experts.multiplies_groups(x_TD.device, product_dtype(x_TD)):
            return self._compacted(x_TD, routing)
        tokens = TokenRows.of(routing)
        x_ND = tokens.spread(x_TD.to(product_dtype(x_TD)))  # before it is moved: half as many bytes under autocast
        y_ND, gate_N = self._by_experts(x_ND, routing), routing.gate_N
        if routing.passes_dropped:
            y_ND = torch.where(routing.kept_N[:, None], y_ND, x_ND.to(y_ND.dtype))
        elif not routing.keeps_all:
            gate_N = gate_N * routing.kept_N
        return tokens.sum(y_ND * gate_N.to(y_ND.dtype)[:, None])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as for `_dropless`
    def _compacted(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Of a list that holds entries that are no assignment, and are not to take memory and time."""
        return self.combined(x_TD, routing.compacted())

    def _by_experts(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Each assignment's expert on its input (N, D); finite, and otherwise anything, where it is dropped.

        In full precision on a CPU hardly any empty slots are computed. Elsewhere, with a capacity, each expert gets its
        slots, whose number does not depend on the router. Where torch multiplies groups well, experts get rows of their
        own instead, if there is no capacity or if it would leave many empty.
        """
        if self.experts.computes_cached(x_ND):
            rows = ExpertRows.packed(routing)
            assert rows.end_E is not None
            return self.experts.cached(x_ND, rows.choice_P, rows.end_E)
        num_experts = self.num_experts
        slots = None if routing.capacity is None else routing.num_groups * routing.capacity
        if self.experts.multiplies_groups(x_ND.device, x_ND.dtype) and (
            slots is None or num_experts * slots > EMPTY_SLOTS_PAY * x_ND.shape[0]
        ):
            rows = ExpertRows.packed(routing)
            assert rows.end_E is not None
            y_ND = rows.combine(self.experts.grouped(rows.dispatch(x_ND), rows.end_E))
            return y_ND if routing.keeps_all else torch.where(routing.kept_N[:, None], y_ND, 0.0)
        if slots is not None:
            return self._padded(x_ND, ExpertRows.padded(routing, slots))
        return self._dropless(x_ND, routing)

    def _padded(self, x_ND: Tensor, rows: ExpertRows) -> Tensor:
        x_ECD = rows.dispatch(x_ND).view(self.num_experts, -1, x_ND.shape[1])
        return rows.combine(self.experts.padded(x_ECD).flatten(0, 1))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # loads differ: each step would be compiled again
    def _dropless(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Reads the loads. On a GPU, experts are padded to the largest unless that is far from the mean."""
        loads = routing.load_E.tolist()
        most = max(1, -(-max(loads) // PADDING)) * PADDING
        if not devices.is_cpu(x_ND.device) and self.num_experts * most <= UNEVEN * x_ND.shape[0]:
            return self._padded(x_ND, ExpertRows.padded(routing, most))
        rows = ExpertRows.packed(routing)
        return rows.combine(self.experts.ragged(rows.dispatch(x_ND), loads))


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
