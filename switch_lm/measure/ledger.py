"""The computation of a run: FLOPs of its matrix products by kind and layer, per token, per step and in all.

A multiply-add is 2 FLOPs, as in `torch.utils.flop_counter`, whose count in eager mode in bf16 on a CPU this equals.
Everything that is executed counts, useful or not, such as empty capacity slots and the masked half of the attention
scores; `useful_per_step` leaves those out. The count does not depend on the machine, even though a CPU skips nearly
all empty slots in float32 (`model.cached`).
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from types import EllipsisType
from typing import Any

from switch_lm.config.schema import Config
from switch_lm.model.config import ModelConfig
from switch_lm.optim.options import OptimOptions, Shape
from switch_lm.routers.options import RouterOptions, expert_capacity

UNITS = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}
BACKWARD = 2  # the backward pass of y = x w has two products of the same size: dx = dy w' and dw = x' dy
LEFT_OUT = (
    "everything that is not a matrix product: norms, softmax, activations, rotation of queries and keys, gathers of "
    "dispatch and combine, embedding look-ups, losses, clipping, AdamW's update and Muon's momentum",
    "the scores that fused attention, as on a GPU, computes again in its backward pass",
    "validation, text samples and the warm-up of compilation",
)


@dataclass(frozen=True)
class LayerWork:
    """FLOPs per token of one block's forward pass: the mean over the tokens of a micro-batch."""

    attention: float = 0.0  # queries, keys, values, scores (the masked half too), weighted values, output
    feed_forward: float = 0.0  # the dense feed-forward, or the shared expert
    router: float = 0.0
    useful: float = 0.0  # experts, on slots that hold a token
    padded: float = 0.0  # experts, on empty slots: unused capacity, or choices dropped at random
    dropped: float = 0.0  # what the dropped choices would cost; not executed

    @property
    def executed(self) -> float:
        """The sum of all kinds but `dropped`."""
        return self.attention + self.feed_forward + self.router + self.useful + self.padded

    def as_plain(self, times: float = 1.0) -> dict[str, float]:
        """FLOPs by kind, and `executed`, each multiplied by `times`."""
        return {kind: times * value for kind, value in asdict(self).items()} | {"executed": times * self.executed}


@dataclass(frozen=True)
class Ledger:
    """The computation of a run in FLOPs."""

    layers: tuple[LayerWork, ...]  # one per block, in order of depth
    head: float  # per token, forward
    tokens: int  # of one micro-batch
    accumulate: int = 1  # micro-batches per step
    max_steps: int = 1
    optimizer_per_step: float = 0.0
    counted: bool = False  # whether each step has one forward pass more, which counts loads
    masked: float = 0.0  # of attention in all blocks, per token, forward: the products with later positions
    router_back: float = BACKWARD  # products of a router's backward pass for each of its forward pass
    partial: "Ledger | None" = None  # the backward pass in the place of the forward one, if not all weights are trained

    @property
    def total(self) -> LayerWork:
        """The sum over blocks, per token, forward, without the head."""
        return LayerWork(*map(sum, zip(*map(astuple, self.layers), strict=True)))

    @property
    def forward(self) -> float:
        """Executed per token in the forward pass, head included."""
        return self.total.executed + self.head

    @property
    def backward(self) -> float:
        """Executed per token in the backward pass."""
        return self.returning.forward

    @property
    def returning(self) -> "Ledger":
        """The backward pass in the place of the forward one."""
        twice = [LayerWork(*(BACKWARD * kind for kind in astuple(layer))) for layer in self.layers]
        layers = tuple(replace(back, router=self.router_back / BACKWARD * back.router) for back in twice)
        return self.partial or replace(self, layers=layers, head=BACKWARD * self.head, masked=BACKWARD * self.masked)

    @property
    def tokens_per_step(self) -> int:
        return self.tokens * self.accumulate

    @property
    def per_step(self) -> float:
        """The forward and backward passes of a step, without the optimizer."""
        return (self.forward * (1 + self.counted) + self.backward) * self.tokens_per_step

    @property
    def useful_per_step(self) -> float:
        """`per_step` without empty slots and without the masked half of attention: what the step's result needs."""
        both = [one.forward - one.total.padded - one.masked for one in (self, self.returning)]
        return sum(both) * self.tokens_per_step

    @property
    def training(self) -> float:
        """The forward and backward passes of the whole run."""
        return self.per_step * self.max_steps

    def by_kind(self, times: float = 1.0) -> dict[str, float]:
        """The forward pass per token by kind, head included, each multiplied by `times`."""
        kinds = self.total.as_plain(times)
        return kinds | {"head": times * self.head, "executed": times * self.forward}

    def as_plain(self) -> dict[str, Any]:
        """For result.json; `layers` are per token, forward."""
        return {
            "forward_per_token": self.by_kind(),
            "backward_per_token": self.returning.by_kind(),
            "forward_per_step": self.by_kind((1 + self.counted) * self.tokens_per_step),
            "backward_per_step": self.returning.by_kind(self.tokens_per_step),
            "useful_per_step": self.useful_per_step,
            "optimizer_per_step": self.optimizer_per_step,
            "layers": [layer.as_plain() for layer in self.layers],
            "tokens_per_step": self.tokens_per_step,
            "steps": self.max_steps,
            "training": self.training,
            "optimizer": self.optimizer_per_step * self.max_steps,
            "left_out": list(LEFT_OUT),
        }


def run_ledger(
    config: Config,
    *,
    vocab_size: int,
    selected_L: Sequence[float] | None = None,
    kept_L: Sequence[float] | None = None,
) -> Ledger:
    """The ledger of a whole configured run. `selected_L` and `kept_L`: as for `ledger`."""
    batch = ledger(
        config.model,
        config.router,
        vocab_size=vocab_size,
        batch_size=config.data.batch_size,
        selected_L=selected_L,
        kept_L=kept_L,
    )
    update = optimizer_flops(config.model, config.optim, train_only=config.train_only)
    trainer, counted = config.trainer, config.balance_over == "step" and config.model.num_switch_layers > 0
    return replace(
        batch, accumulate=trainer.accumulate, max_steps=trainer.max_steps, optimizer_per_step=update, counted=counted,
        partial=_partial(batch, config) if config.train_only != "all" and config.model.switch_blocks else None,
    )  # fmt: skip


def _partial(work: Ledger, config: Config) -> Ledger:
    """The backward pass where only routers or experts are trained.

    It ends in the first Switch layer, whose input needs no gradient. Above it, a frozen weight has one product, that
    with the gradient of its output; a trained one two, and the scores and weighted values of attention too.
    """
    model, experts = config.model, config.train_only == "experts"
    first = model.switch_blocks[0]

    def back(block: int, layer: LayerWork) -> LayerWork:
        above = float(block > first)
        of_experts = above + experts * (1.0 if above else 1.5)  # of the first, w_in needs no gradient of its input
        return LayerWork(
            attention=above * (layer.attention + 2.0 * 2 * model.context_length * model.d_model),
            feed_forward=above * layer.feed_forward,
            router=(above + (not experts)) * layer.router,
            useful=of_experts * layer.useful,
            padded=of_experts * layer.padded,
            dropped=of_experts * layer.dropped,
        )

    layers = tuple(back(block, layer) for block, layer in enumerate(work.layers))
    return replace(work, layers=layers, masked=BACKWARD * work.masked * (1 - (first + 1) / model.num_layers))


def ledger(
    model: ModelConfig,
    router: RouterOptions,
    *,
    vocab_size: int,
    batch_size: int,
    context: int | None = None,
    training: bool = True,
    capacity_factor: float | EllipsisType | None = ...,
    selected_L: Sequence[float] | None = None,
    kept_L: Sequence[float] | None = None,
) -> Ledger:
    """The ledger of one micro-batch of `batch_size` rows of `context` tokens (default: the context length).

    `capacity_factor`, if given, replaces that of training or evaluation. `selected_L` and `kept_L`: the measured
    number of selected and of kept choices per token in each Switch layer, ValueError unless there is one per layer; by
    default what the router states, and an even load. With a capacity they do not change what is executed.
    """
    context = context or model.context_length
    if isinstance(capacity_factor, EllipsisType):
        capacity_factor = model.capacity_factor if training else model.eval_capacity_factor
    group = batch_size * context // router.num_groups(batch_size)
    limit = router.limit(capacity_factor, training=training)
    capacity = expert_capacity(group, model.num_experts, limit)
    if selected_L is None:
        learned = model.capacity_factor if capacity_factor is None else capacity_factor
        selected_L = [router.experts_per_token(model.num_experts, learned)] * model.num_switch_layers
    fixed = None if capacity is None else model.num_experts * capacity / group
    slots_L = [selected if fixed is None else fixed for selected in selected_L]  # per token
    if kept_L is None:
        pairs = zip(selected_L, slots_L, strict=True)
        kept_L = [router.spared(training=training) * min(selected, slots) for selected, slots in pairs]
    blocks = range(model.num_layers)
    of_layers = zip(selected_L, slots_L, kept_L, strict=True)
    work = dict(zip(filter(model.is_switch, blocks), of_layers, strict=True))
    layers = tuple(
        _switch(model, router, context, *work[block]) if block in work else _dense(model, context) for block in blocks
    )
    masked = model.num_layers * 2.0 * (context - 1) * model.d_model
    return Ledger(
        layers, head=2.0 * model.d_model * vocab_size, tokens=batch_size * context, masked=masked,
        router_back=BACKWARD if router.learns else 1.0,
    )  # fmt: skip


def optimizer_flops(model: ModelConfig, optim: OptimOptions, *, train_only: str = "all") -> float:
    """FLOPs of the optimizer in a step, on average, as it states them for the hidden matrices that are trained."""
    shapes = hidden_shapes(model)
    trained = [shape for shape in shapes if len(shape) == 3 and train_only == "experts"]
    return optim.flops_per_step(shapes if train_only == "all" else trained)


def hidden_shapes(model: ModelConfig) -> list[Shape]:
    """The shapes of `SwitchLM.hidden_matrices()`, in the same order."""
    D, F, E = model.d_model, model.d_ff, model.num_experts
    attention: list[Shape] = [(3 * D, D), (D, D)]
    dense: list[Shape] = [(F, D), (D, F)]
    experts: list[Shape] = [(E, D, F), (E, F, D)]
    shapes: list[Shape] = []
    for block in range(model.num_layers):
        shapes += attention
        shapes += experts if model.is_switch(block) else dense
        shapes += dense if model.is_switch(block) and model.shared_expert else []
    return shapes


def _dense(model: ModelConfig, context: int) -> LayerWork:
    attention = 2.0 * 4 * model.d_model**2 + 2.0 * 2 * context * model.d_model
    return LayerWork(attention, feed_forward=2.0 * 2 * model.d_model * model.d_ff)


def _switch(
    model: ModelConfig, router: RouterOptions, context: int, selected: float, slots: float, kept: float
) -> LayerWork:
    """`selected`: experts of a token; `slots`: computed per token, in all of them; `kept`: those that hold a choice."""
    dense = _dense(model, context)
    expert = dense.feed_forward
    return replace(
        dense,
        feed_forward=expert if model.shared_expert else 0.0,
        router=2.0 * router.num_params(model.d_model, model.num_experts),
        useful=kept * expert,
        padded=(slots - kept) * expert,
        dropped=(selected - kept) * expert,
    )


def ledger_in_words(config: Config, vocab_size: int) -> str:
    """Two lines for the console: the cost of a token by kind, with an even load, and the cost of a step."""
    work = run_ledger(config, vocab_size=vocab_size)
    no_experts = replace(config.model, switch_every=0, switch_layers=None)
    dense = run_ledger(replace(config, model=no_experts), vocab_size=vocab_size)
    unit, step_unit, kinds = _unit(work.forward), _unit(work.per_step), work.by_kind()
    names = {"attention": "attention", "feed_forward": "dense feed-forward", "useful": "experts",
             "padded": "their empty slots", "router": "router", "head": "head"}  # fmt: skip
    parts = [f"{name} {_in(unit, kinds[kind])}" for kind, name in names.items() if kinds[kind] > 0.0]
    step = f"{_in(step_unit, work.per_step)} {step_unit} per step"
    if work.optimizer_per_step > 0.0:
        step += f", {_in(step_unit, work.optimizer_per_step)} more in {config.optim.name}"
    return (
        f"{_in(unit, work.forward)} {unit} per token forward: {', '.join(parts)}\n"
        f"{work.forward / dense.forward:.2f} x that of model=dense; forward and backward {step}"
    )


def _unit(flops: float) -> str:
    return next((unit for unit, size in UNITS.items() if flops >= size), "MFLOP")


def _in(unit: str, flops: float) -> str:
    return "<0.01" if flops < 0.005 * UNITS[unit] else f"{flops / UNITS[unit]:,.2f}"


def ledger_table(config: Config, vocab_size: int) -> str:
    """Markdown: MFLOP per token, forward, by layer and kind, with an even load; then the cost of a step."""
    work = run_ledger(config, vocab_size=vocab_size)
    rows = {f"layer {number:02d}": layer.as_plain(1e-6) for number, layer in enumerate(work.layers)}
    rows |= {"head": {"executed": 1e-6 * work.head}, "model": work.by_kind(1e-6)}
    kinds = list(work.total.as_plain())
    lines = ["MFLOP per token, forward | " + " | ".join(kinds), "|".join(["---"] * (len(kinds) + 1))]
    for name, values in rows.items():
        lines.append(" | ".join([name, *(f"{values[kind]:.3f}" if kind in values else "-" for kind in kinds)]))
    total, active = (
        count(vocab_size, config.router) for count in (config.model.num_params, config.model.num_active_params)
    )
    return "\n".join(
        [
            *lines,
            "",
            f"A step: {1e-9 * work.per_step:.2f} GFLOP forward and backward, for {work.tokens_per_step:,} tokens; "
            f"{1e-9 * work.optimizer_per_step:.2f} more in the optimizer. Only matrix products are counted.",
            "",
            f"Parameters: {total:,} in all, {active:,} active for each token.",
            "",
            *(f"* left out: {text}" for text in LEFT_OUT),
        ]
    )
