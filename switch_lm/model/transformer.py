"""The Switch Transformer language model: embedding, pre-norm blocks, head."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType

from torch import Tensor, nn

from switch_lm.model.attention import Attention, LayerCache, rotary_table
from switch_lm.model.config import ModelConfig
from switch_lm.model.experts import Experts, FeedForward
from switch_lm.model.switch import SwitchFeedForward, initialize
from switch_lm.routers.noise import Dropout
from switch_lm.routers.routing import Routing


@dataclass(frozen=True)
class SwitchOutput:
    """The result of a forward pass: logits (B, S, V), and the routing of each Switch layer in order of depth."""

    logits: Tensor
    routings: tuple[Routing, ...]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), dense or Switch."""

    def __init__(self, config: ModelConfig, *, switch: bool) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model)
        self.attention = Attention(d_model=config.d_model, num_heads=config.num_heads)
        self.norm_ffn = nn.RMSNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.ffn = (
            switch_layer(config)
            if switch
            else FeedForward(d_model=config.d_model, d_ff=config.d_ff, activation=config.activation)
        )

    def forward(
        self,
        x_BSD: Tensor,
        *,
        rotation: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> tuple[Tensor, Routing | None]:
        """The residual stream after the block (B, S, D), and what its router decided; None for a dense block."""
        x_BSD = x_BSD + self.dropout(self.attention(self.norm_attention(x_BSD), rotation=rotation, cache=cache))
        h_BSD = self.norm_ffn(x_BSD)
        if isinstance(self.ffn, SwitchFeedForward):
            y_BSD, routing = self.ffn(h_BSD, capacity_factor=capacity_factor)
        else:
            y_BSD, routing = self.ffn(h_BSD), None
        return x_BSD + self.dropout(y_BSD), routing


def switch_layer(config: ModelConfig) -> SwitchFeedForward:
    """A new Switch layer of a configured model."""
    return SwitchFeedForward(
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_experts=config.num_experts,
        capacity_factor=config.capacity_factor,
        eval_capacity_factor=config.eval_capacity_factor,
        rule=config.rule,
        router_jitter=config.router_jitter,
        router_input_dropout=config.router_input_dropout,
        activation=config.activation,
        expert_dropout=config.expert_dropout,
        shared_expert=config.shared_expert,
        selection_bias=config.selection_bias_rate > 0.0,
        init_scale=config.init_scale,
    )


class SwitchLM(nn.Module):
    """A decoder-only language model in which every `switch_every`-th block, or none, has a Switch layer."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        if config.position == "learned":
            self.position = nn.Embedding(config.context_length, config.d_model)
        if config.position == "rotary":
            cos_SW, sin_SW = rotary_table(config.context_length, config.d_model // config.num_heads)
            self.cos_SW: Tensor
            self.sin_SW: Tensor
            self.register_buffer("cos_SW", cos_SW, persistent=False)
            self.register_buffer("sin_SW", sin_SW, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, switch=config.is_switch(block)) for block in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        initialize(self, config.init_scale)

    @property
    def switch_layers(self) -> list[SwitchFeedForward]:
        """All Switch layers in order of depth; empty for a dense model."""
        return [layer for layer in self.modules() if isinstance(layer, SwitchFeedForward)]

    def new_cache(self) -> list[LayerCache]:
        """An empty key-value cache, one entry per block, to pass to each `forward` over the same text."""
        return [LayerCache(self.config.context_length) for _ in self.blocks]

    def forward(
        self,
        ids_BS: Tensor,
        *,
        cache: list[LayerCache] | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> SwitchOutput:
        """Logits (B, S, V) of the character that follows each of `ids_BS` (int64), which follow those in the cache.

        `capacity_factor`, if given, replaces the configured one in every Switch layer; None is dropless. ValueError if
        the positions, those in the cache included, exceed the context length.
        """
        start = 0 if cache is None else cache[0].length
        end = start + ids_BS.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} positions exceed the context_length of {self.config.context_length}")
        x_BSD = self.embedding(ids_BS)
        if self.config.position == "learned":
            x_BSD = x_BSD + self.position.weight[start:end]
        x_BSD = self.dropout(x_BSD)
        rotation = (self.cos_SW[start:end], self.sin_SW[start:end]) if self.config.position == "rotary" else None
        routings = []
        for i, block in enumerate(self.blocks):
            x_BSD, routing = block(
                x_BSD, rotation=rotation, cache=None if cache is None else cache[i], capacity_factor=capacity_factor
            )
            if routing is not None:
                routings.append(routing)
        return SwitchOutput(self.head(self.norm(x_BSD)), tuple(routings))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices of attention and feed-forwards (O, I), and stacks of an expert's (E, I, O), in order of depth."""
        parts = [module for module in self.modules() if isinstance(module, Attention | FeedForward | Experts)]
        of_routers = set(self.router_parameters())  # which may have feed-forwards of their own
        return [w for part in parts for w in part.parameters() if w.dim() >= 2 and w not in of_routers]


@contextmanager
def evaluating(model: SwitchLM) -> Iterator[None]:
    """Puts the model in `eval()` for the block, and back in its mode after it."""
    if not model.training:  # generation enters for each character: walking all modules took a sixth of its time
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
