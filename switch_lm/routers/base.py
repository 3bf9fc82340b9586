"""What every router is: noise on its input, its scores, and its promises. A family writes `assign`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from switch_lm.config.families import register
from switch_lm.routers.balance import by_quantile, by_sign
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.noise import Dropout, jitter
from switch_lm.routers.options import BalanceOptions, RouterOptions
from switch_lm.routers.queueing import enqueue, queue_slots
from switch_lm.routers.routing import Routing


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a router says of itself, which `python -m switch_lm.check` tests by intervention."""

    sees_future: bool = False  # later tokens of its row can move a token
    depends_on_rows: bool = False  # other rows of the batch can move a token
    fixed_computation: bool = True  # how much is computed follows from the shapes alone
    experts_per_token: int | None = 1  # that a token selects; None: it varies
    draws: bool = False  # experts are drawn at random
    shuffles: bool = False  # who gets a slot is drawn at random
    reroutes: bool = False  # another expert than the selected one may compute
    varies_gates: bool = True  # gates depend on the token
    learns: bool = True  # its weights have a gradient from the language loss
    keeps_mean: bool = False  # where it varies, its mean is near what the options state
    state: str = ""  # when this holds, of a rule that changes in a run: "after its warm-up of 100 steps"


class Router(nn.Module):
    """Selects experts for tokens, and their slots. A subclass with a `name` of its own is chosen by `router=NAME`.

    It writes `assign`, and where its answers differ from those here `promise`, `gates`, `aux_losses`, `prepare` and
    `after_step`.
    `Options` are its configuration keys, a dataclass whose fields are made by `switch_lm.config.keys.key`; `oracle` is
    the plain loop that the certificate compares it with (see `switch_lm.routers.oracles.Oracle`).
    State, such as a bias, stands in buffers, which `forward` never changes and checkpoints hold.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[RouterOptions]] = RouterOptions
    oracle: ClassVar[Callable[..., Any] | None] = None
    has_weights: ClassVar[bool] = True  # W_r (D, E), as `w_DE`
    reads_input: ClassVar[bool] = True  # False: noise on its input would do nothing
    as_trained: bool  # whether evaluation uses the training rule, where the two differ
    bias_E: Tensor | None

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        if cls.forward is not Router.forward:
            raise TypeError(f"{cls.__name__}.forward: the forward of a router is final; write assign instead")
        if "name" in vars(cls):
            if cls.assign is Router.assign:
                raise TypeError(f"{cls.__name__} is a router without an assign of its own; write assign")
            register("router", cls.name, options=cls.Options, code=cls)

    def __init__(
        self,
        options: RouterOptions | None = None,
        *,
        d_model: int,
        num_experts: int,
        balance: BalanceOptions | None = None,
    ) -> None:
        super().__init__()
        self.options, self.as_trained = self.Options() if options is None else options, False
        self.num_experts = num_experts
        self.w_DE = nn.Parameter(torch.empty(d_model, num_experts)) if self.has_weights else None
        self.input_dropout = Dropout(self.options.input_dropout)
        self.balance = BalanceOptions() if balance is None else balance
        self.register_buffer("bias_E", torch.zeros(num_experts) if self.balance.moves_bias else None)

    def prepare(self, counts_V: Tensor, *, max_steps: int | None = None) -> None:
        """Called when its model is made, with equal counts, and once before the first step of a run.

        `counts_V` (int64): how often each character stands in the text to train on; `max_steps`: those of the run. For
        a router that reads them; a checkpoint replaces what it stores in buffers.
        """

    @final  # type: ignore[misc]  # nn.Module declares it as a variable
    def forward(
        self,
        x_TD: Tensor,
        *,
        ids_T: Tensor | None = None,
        position_T: Tensor | None = None,
        capacity: int | None = None,
        num_groups: int = 1,
    ) -> Routing:
        """Where the tokens go, in float32, or in float64 if its weights are. Autocast, which would undo a cast, is off.

        `ids_T` and `position_T` (int64): the characters and their positions; None where a layer is called alone. The T
        tokens are `num_groups` groups of equal length, one after the other; each expert has `capacity` slots for each
        group, None is dropless. Source: Switch Transformers, section 2.4.
        """
        device = x_TD.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            x_TD = x_TD.to(torch.float32 if self.w_DE is None else torch.promote_types(self.w_DE.dtype, torch.float32))
            if self.reads_input:
                if self.training and self.options.jitter > 0.0:
                    x_TD = jitter(x_TD, self.options.jitter)
                x_TD = self.input_dropout(x_TD)
            logits_TE = None if self.w_DE is None else narrow_product(x_TD, self.w_DE)
            routing = self.assign(
                x_TD, logits_TE, ids_T=ids_T, position_T=position_T, capacity=capacity, num_groups=num_groups
            )
        if not isinstance(routing, Routing):
            raise TypeError(f"{type(self).__name__}.assign gave a {type(routing).__name__}; it must return a Routing")
        return routing

    def assign(
        self,
        x_TD: Tensor,
        logits_TE: Any,
        *,
        ids_T: Tensor | None,
        position_T: Tensor | None,
        capacity: int | None,
        num_groups: int,
    ) -> Routing:
        """The routing of the tokens, from the router's noisy input (T, D) and x W_r (T, E), both float32.

        `logits_TE` is None without weights. Changes nothing on the router: what it learns from loads, it learns in
        `after_step`.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no assign")

    def token_choice(
        self,
        expert_TK: Tensor,
        scores_TE: Tensor,
        *,
        probs_TE: Tensor | None = None,
        logits_TE: Tensor | None = None,
        capacity: int | None,
        num_groups: int = 1,
        by_choice: bool = False,
    ) -> Routing:
        """The routing in which each token selects K experts, and they give their slots by the router's options.

        `expert_TK` (int64), `scores_TE` (float32, with gradient), of which `gates` makes the gates. `probs_TE`: by
        default the scores. `by_choice`: all first choices queue before all second ones.
        """
        options, (num_tokens, top_k) = self.options, expert_TK.shape
        limited, expert_N = capacity is not None, expert_TK.flatten()
        if capacity is None:
            num_groups, assigned_TK = 1, expert_TK
            queue = queue_slots(expert_N[None], scores_TE.shape[1])
        else:
            expert_GtK, scores_GtE = (x.unflatten(0, (num_groups, -1)) for x in (expert_TK, scores_TE))
            assigned_GN, queue = enqueue(
                expert_GtK,
                scores_GtE,
                capacity=capacity,
                drop_order=options.drop_order,
                overflow=options.overflow,
                by_choice=by_choice,
                training=self.training,
            )
            assigned_TK = assigned_GN.view_as(expert_TK)
        gate_TK = self.gates(scores_TE.gather(1, assigned_TK))
        slot_N = queue.slot_GN.flatten()
        kept_N = slot_N < capacity if capacity is not None else torch.ones_like(slot_N, dtype=torch.bool)
        drops_at_random = self.training and options.random_drop_rate > 0.0
        if drops_at_random:  # its slot stays empty: the other choices keep what they have
            kept_N = kept_N & (torch.rand_like(gate_TK) >= options.random_drop_rate).flatten()
        token_N = torch.arange(num_tokens, device=slot_N.device)
        return Routing(
            token_N=token_N if top_k == 1 else token_N.repeat_interleave(top_k),
            expert_N=expert_N,
            assigned_N=assigned_TK.flatten() if limited else expert_N,
            slot_N=slot_N,
            gate_N=gate_TK.flatten(),
            kept_N=kept_N,
            load_E=queue.load_GE.sum(dim=0) if num_groups > 1 else queue.load_GE[0],
            scores_TE=scores_TE,
            probs_TE=scores_TE if probs_TE is None else probs_TE,
            logits_TE=logits_TE,
            capacity=capacity,
            num_groups=num_groups,
            choices_per_token=top_k,
            keeps_all=not limited and not drops_at_random,
            passes_dropped=options.overflow == "passthrough",
        )

    @property
    def chooses_as_trained(self) -> bool:
        """Whether to select by the training rule, where it differs from evaluation's."""
        return self.training or self.as_trained

    def biased(self, score_TE: Tensor) -> Tensor:
        """The scores plus the bias of `balance=sign|quantile`, if there is one: what experts are to be selected by."""
        return score_TE if self.bias_E is None else score_TE + self.bias_E

    def top_experts(self, score_TE: Tensor) -> Tensor:
        """The K experts (T, K), int64, with the largest scores and bias.

        The bias changes which experts are selected and nothing else (DeepSeek-V3, section 2.1.2).
        """
        return largest(self.biased(score_TE.detach()), self.options.top_k)

    def gates(self, score_TK: Tensor) -> Tensor:
        """The factor of each expert's output (T, K), from the scores of a token's K experts (T, K): the score itself.

        Through it alone the language loss reaches the router (eq. 2).
        """
        return score_TK

    def aux_losses(self, routing: Routing) -> dict[str, Tensor]:
        """Its own losses by name, 0-d, which `alpha` weights; `balance` only if that is `balance=loss`."""
        return {"balance": load_balancing_loss(routing)} if self.options.has_balance_loss else {}

    @torch.no_grad()
    def after_step(self, routings: Sequence[Routing]) -> None:
        """Called once after each optimizer step, with the routings of all its micro-batches, without gradients.

        The only place that changes buffers. Here: the bias of `balance=sign|quantile`.
        """
        if self.bias_E is None:
            return
        if self.balance.name == "quantile":
            score_TE = torch.cat([routing.scores_TE for routing in routings])
            bias_E = by_quantile(self.bias_E, score_TE, self.options.top_k)
            self.bias_E.lerp_(bias_E, 1.0 - self.balance.ema)
        else:
            load_E = torch.stack([routing.load_E for routing in routings]).sum(dim=0)
            self.bias_E.copy_(by_sign(self.bias_E, load_E, self.balance.rate))

    def promise(self, *, training: bool, limited: bool) -> Promise:
        """What holds in training or evaluation, with a capacity (`limited`) or without: here, for `token_choice`."""
        options = self.options
        out_of_order = options.drop_order == "probability" or (options.drop_order == "random" and training)
        reroutes = options.overflow == "reroute"
        return Promise(
            sees_future=limited and (out_of_order or reroutes),
            depends_on_rows=limited and options.num_groups(2) == 1,
            experts_per_token=options.top_k,
            shuffles=limited and options.drop_order == "random" and training,
            reroutes=limited and reroutes,
            learns=self.has_weights,
        )


def largest(score_TE: Tensor, number: int) -> Tensor:
    """The places of each row's `number` largest (T, K), int64."""
    return score_TE.argmax(dim=-1, keepdim=True) if number == 1 else score_TE.topk(number, dim=-1).indices


def narrow_product(x_TD: Tensor, w_DE: Tensor) -> Tensor:
    """x w (T, E) for a narrow w (D, E). On a CPU, its gradient as (g' x)' takes a quarter of the time of x' g."""
    if not torch.is_grad_enabled():
        return x_TD @ w_DE
    product_TE: Tensor = _NarrowProduct.apply(x_TD, w_DE)  # type: ignore[no-untyped-call]
    return product_TE


class _NarrowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_DE: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, w_DE)
        return x_TD @ w_DE

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x_TD, w_DE), (of_x, of_w) = ctx.saved_tensors, ctx.needs_input_grad
        return grad_TE @ w_DE.T if of_x else None, (grad_TE.T @ x_TD).T if of_w else None
