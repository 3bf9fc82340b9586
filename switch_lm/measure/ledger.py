"""What a run computes: the FLOPs of its matrix products, by kind and layer, for a token, a step and the whole run.

A multiply-add is 2 FLOPs, as in `torch.utils.flop_counter`, whose count in eager mode on a CPU this equals. Executed
work counts, of use or not: empty places of experts are multiplied, and so is the masked half of the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import EllipsisType
from typing import Any

from switch_lm.config.schema import Config, OptimConfig
from switch_lm.model.config import ModelConfig
from switch_lm.routers.options import expert_capacity

BACKWARD = 2  # y = x w has two products of the same size behind it: dx = dy w' and dw = x' dy
NEWTON_SCHULZ_ROUNDS = (3, 2)  # iterations in each round of switch_lm.muon.orthogonalize
LEFT_OUT = (
    "all that is no matrix product: norms, softmax, activations, the rotation of queries and keys, gathers of dispatch "
    "and combine, embedding look-ups, losses, clipping, AdamW's update and Muon's momentum",
    "the scores that fused attention, as on a GPU, computes once more in its backward pass",
    "validation, text samples and what compiling runs to warm up",
)


@dataclass(frozen=True)
class LayerWork:
    """FLOPs of one block's matrix products for one token, forward, on average over the tokens of a micro-batch."""

    attention: float = 0.0  # queries, keys, values, scores (the masked half too), their values, output
    feed_forward: float = 0.0  # the dense one, or the shared expert
    router: float = 0.0
    useful: float = 0.0  # experts, on places that hold a token
    padded: float = 0.0  # experts, on places that are empty: capacity that nobody took, choices dropped at random
    dropped: float = 0.0  # what the dropped choices would have cost; not executed

    @property
    def executed(self) -> float:
        """All but what was dropped."""
        return self.attention + self.feed_forward + self.router + self.useful + self.padded

    def __add__(self, other: LayerWork) -> LayerWork:
        return LayerWork(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def as_plain(self, times: float = 1.0) -> dict[str, float]:
        """By kind, and what is executed in all; `times` as much."""
        return {kind: times * value for kind, value in asdict(self).items()} | {"executed": times * self.executed}


@dataclass(frozen=True)
class Ledger:
    """The matrix products of a run, in FLOPs."""

    layers: tuple[LayerWork, ...]  # of every block, in order of depth
    head: float  # per token, forward
    tokens: int  # of one micro-batch
    accumulate: int = 1  # micro-batches per step
    max_steps: int = 1
    optimizer_per_step: float = 0.0

    @property
    def total(self) -> LayerWork:
        """All blocks together, per token, forward; without the head."""
        return sum(self.layers, LayerWork())

    @property
    def forward(self) -> float:
        """What is executed for a token in the forward pass."""
        return self.total.executed + self.head

    @property
    def backward(self) -> float:
        """What is executed for a token in the backward pass."""
        return BACKWARD * self.forward

    @property
    def tokens_per_step(self) -> int:
        return self.tokens * self.accumulate

    @property
    def per_step(self) -> float:
        """Forward and backward passes of a step; its optimizer comes on top."""
        return (self.forward + self.backward) * self.tokens_per_step

    @property
    def training(self) -> float:
        """Forward and backward passes of the whole run."""
        return self.per_step * self.max_steps

    @property
    def optimizer(self) -> float:
        """The optimizer's products in the whole run."""
        return self.optimizer_per_step * self.max_steps

    def by_kind(self, times: float = 1.0) -> dict[str, float]:
        """The model's forward pass for a token by kind, the head included; `times` as much."""
        kinds = self.total.as_plain(times)
        return kinds | {"head": times * self.head, "executed": times * self.forward}

    def as_plain(self) -> dict[str, Any]:
        """For result.json; `layers` are per token, forward."""
        return {
            "forward_per_token": self.by_kind(),
            "backward_per_token": self.by_kind(BACKWARD),
            "forward_per_step": self.by_kind(self.tokens_per_step),
            "backward_per_step": self.by_kind(BACKWARD * self.tokens_per_step),
            "optimizer_per_step": self.optimizer_per_step,
            "layers": [layer.as_plain() for layer in self.layers],
            "tokens_per_step": self.tokens_per_step,
            "steps": self.max_steps,
            "training": self.training,
            "optimizer": self.optimizer,
            "left_out": list(LEFT_OUT),
        }


def run_ledger(config: Config, *, vocab_size: int, kept_L: Sequence[float] | None = None) -> Ledger:
    """The whole run of a configuration. `kept_L`: choices kept per token in each Switch layer, as for `ledger`."""
    batch = ledger(config.model, vocab_size=vocab_size, batch_size=config.data.batch_size, kept_L=kept_L)
    update = optimizer_flops(config.model, config.optim)
    trainer = config.trainer
    return replace(batch, accumulate=trainer.accumulate, max_steps=trainer.max_steps, optimizer_per_step=update)


def ledger(
    model: ModelConfig,
    *,
    vocab_size: int,
    batch_size: int,
    context: int | None = None,
    training: bool = True,
    capacity_factor: float | EllipsisType | None = ...,
    kept_L: Sequence[float] | None = None,
) -> Ledger:
    """One micro-batch of `batch_size` rows of `context` tokens (the whole context_length if not given).

    `capacity_factor` is that of training, or of evaluation if not `training`, unless given. `kept_L`: choices kept per
    token in each Switch layer, as measured; without it the load is taken as even, which is what can be known before.
    It does not change what is executed.
    """
    context = context or model.context_length
    if isinstance(capacity_factor, EllipsisType):
        capacity_factor = model.capacity_factor if training else model.eval_capacity_factor
    group = context if model.capacity_group == "sequence" else batch_size * context
    capacity = expert_capacity(group, model.num_experts, capacity_factor)
    places = float(model.top_k) if capacity is None else model.num_experts * capacity / group  # per token
    if kept_L is None:
        spared = 1.0 - model.random_drop_rate if training else 1.0
        kept_L = [spared * min(model.top_k, places)] * model.num_switch_layers
    blocks = range(model.num_layers)
    kept = dict(zip(filter(model.is_switch, blocks), kept_L, strict=True))
    layers = tuple(
        _switch(model, context, places, kept[block]) if block in kept else _dense(model, context) for block in blocks
    )
    return Ledger(layers, head=2.0 * model.d_model * vocab_size, tokens=batch_size * context)


def optimizer_flops(model: ModelConfig, optim: OptimConfig) -> float:
    """FLOPs of one step's matrix products: Muon's Newton-Schulz iterations on every hidden matrix; AdamW has none.

    Experts are moved in every `optim.steps_between_moves`-th step: the figure is the mean of that many. With m the
    shorter and n the longer side of x, a round of k iterations is x x', a product of (m, m) with x and 4 k - 3 products
    of (m, m): a square each, and three between two.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    if optim.name != "muon":
        return 0.0
    return sum(
        number * 2.0 * (2 * min(sides) ** 2 * max(sides) + (4 * iterations - 3) * min(sides) ** 3)
        for number, sides in _hidden_matrices(model, optim.steps_between_moves(model.num_experts))
        for iterations in NEWTON_SCHULZ_ROUNDS
    )


def _hidden_matrices(model: ModelConfig, steps_between_moves: int) -> list[tuple[float, tuple[int, int]]]:
    """How many matrices of which sides Muon moves in a step; router, embedding and head are AdamW's."""
    D, num_switch = model.d_model, model.num_switch_layers
    num_dense = model.num_layers - num_switch + (num_switch if model.shared_expert else 0)
    num_ffns = num_dense + num_switch * model.num_experts / steps_between_moves
    return [(model.num_layers, (3 * D, D)), (model.num_layers, (D, D)), (2 * num_ffns, (D, model.d_ff))]


def _feed_forward(model: ModelConfig) -> float:
    return 2.0 * 2 * model.d_model * model.d_ff


def _dense(model: ModelConfig, context: int) -> LayerWork:
    attention = 2.0 * 4 * model.d_model**2 + 2.0 * 2 * context * model.d_model
    return LayerWork(attention, feed_forward=_feed_forward(model))


def _switch(model: ModelConfig, context: int, places: float, kept: float) -> LayerWork:
    """`places`: computed for a token, in all experts together; `kept`: those that hold one."""
    dense, expert = _dense(model, context), _feed_forward(model)
    return LayerWork(
        attention=dense.attention,
        feed_forward=dense.feed_forward if model.shared_expert else 0.0,
        router=2.0 * model.d_model * model.num_experts,
        useful=kept * expert,
        padded=(places - kept) * expert,
        dropped=(model.top_k - kept) * expert,
    )
