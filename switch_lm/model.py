"""The Switch Transformer language model: embedding, pre-norm blocks, head."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

from torch import Tensor, nn

from switch_lm.architecture import ModelConfig
from switch_lm.attention import Attention, LayerCache, rotary_table
from switch_lm.experts import ACTIVATIONS
from switch_lm.routing import Routing
from switch_lm.switch import SwitchFeedForward


@dataclass(frozen=True)
class SwitchOutput:
    """What a forward pass gives: logits (B, S, V) and what each Switch layer decided, in order of depth."""

    logits: Tensor
    routings: tuple[Routing, ...]


class FeedForward(nn.Module):
    """The dense feed-forward that one expert's computation equals."""

    def __init__(self, *, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.w_in = nn.Linear(d_model, d_ff, bias=False)
        self.w_out = nn.Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.w_out(self.activation(self.w_in(x_BSD)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), dense or Switch."""

    def __init__(self, config: ModelConfig, *, switch: bool) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model)
        self.attention = Attention(d_model=config.d_model, num_heads=config.num_heads)
        self.norm_ffn = nn.RMSNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn: SwitchFeedForward | FeedForward
        if switch:
            self.ffn = SwitchFeedForward(
                d_model=config.d_model,
                d_ff=config.d_ff,
                num_experts=config.num_experts,
                capacity_factor=config.capacity_factor,
                eval_capacity_factor=config.eval_capacity_factor,
                router_jitter=config.router_jitter,
                activation=config.activation,
                init_scale=config.init_scale,
            )
        else:
            self.ffn = FeedForward(d_model=config.d_model, d_ff=config.d_ff, activation=config.activation)

    def forward(
        self,
        x_BSD: Tensor,
        *,
        rotation: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> tuple[Tensor, Routing | None]:
        x_BSD = x_BSD + self.dropout(self.attention(self.norm_attention(x_BSD), rotation=rotation, cache=cache))
        h_BSD = self.norm_ffn(x_BSD)
        if isinstance(self.ffn, SwitchFeedForward):
            y_BSD, routing = self.ffn(h_BSD, capacity_factor=capacity_factor)
        else:
            y_BSD, routing = self.ffn(h_BSD), None
        return x_BSD + self.dropout(y_BSD), routing


class SwitchLM(nn.Module):
    """A decoder-only language model whose feed-forwards are Switch layers, every `switch_every`-th or none."""

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
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, switch=config.is_switch(block)) for block in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        initialize(self, config.init_scale)

    def new_cache(self) -> list[LayerCache]:
        """An empty key-value cache, to be handed to each `forward` of one text."""
        return [LayerCache() for _ in self.blocks]

    def forward(
        self,
        ids_BS: Tensor,
        *,
        cache: list[LayerCache] | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> SwitchOutput:
        """Logits of the next character after each of `ids_BS` (B, S), which follow those in the cache.

        `capacity_factor`, where given, stands in for the configured one in every Switch layer (None is dropless).
        """
        start = 0 if cache is None or cache[0].key_BHSW is None else cache[0].key_BHSW.shape[2]
        end = start + ids_BS.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} positions are more than the context_length of {self.config.context_length}")
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


def initialize(model: nn.Module, init_scale: float) -> None:
    """Draws every matrix from a normal of sigma = sqrt(init_scale / fan_in), truncated at 2 sigma; norms stay 1.

    Our own matrices are (.., fan_in, fan_out), nn.Linear keeps (fan_out, fan_in). An embedding counts as the head it
    may be tied to. Source: Switch Transformers, section 2.4 and table 3.
    """
    for module in model.modules():
        fan_in = -1 if isinstance(module, nn.Linear | nn.Embedding) else -2
        for parameter in module.parameters(recurse=False):
            if parameter.dim() >= 2:
                sigma = (init_scale / parameter.shape[fan_in]) ** 0.5
                nn.init.trunc_normal_(parameter, std=sigma, a=-2 * sigma, b=2 * sigma)
