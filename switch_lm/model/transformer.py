"""The Switch Transformer language model: embedding, pre-norm blocks, head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor, nn

from switch_lm.config.families import load
from switch_lm.model.attention import Attention, LayerCache, rotary_table
from switch_lm.model.config import ModelConfig
from switch_lm.model.experts import Experts, FeedForward
from switch_lm.model.norm import RMSNorm
from switch_lm.model.switch import SwitchFeedForward, initialize
from switch_lm.routers.base import Router
from switch_lm.routers.noise import Dropout
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions
from switch_lm.routers.routing import Routing


@dataclass(frozen=True)
class SwitchOutput:
    """The result of a forward pass: logits (B, S, V), and the routing of each Switch layer in order of depth."""

    logits: Tensor
    routings: tuple[Routing, ...]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), dense or Switch."""

    def __init__(self, config: ModelConfig, router: Router | None) -> None:
        super().__init__()
        self.norm_attention = RMSNorm(config.d_model)
        self.attention = Attention(d_model=config.d_model, num_heads=config.num_heads)
        self.norm_ffn = RMSNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.ffn = (
            FeedForward(d_model=config.d_model, d_ff=config.d_ff, activation=config.activation)
            if router is None
            else switch_layer(config, router)
        )

    def forward(
        self,
        x_BSD: Tensor,
        *,
        ids_BS: Tensor,
        position_S: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None = None,
        capacity_factor: float | EllipsisType | None = ...,
    ) -> tuple[Tensor, Routing | None]:
        """The residual stream after the block (B, S, D), and what its router decided; None for a dense block."""
        x_BSD = x_BSD + self.dropout(self.attention(self.norm_attention(x_BSD), rotation=rotation, cache=cache))
        h_BSD = self.norm_ffn(x_BSD)
        if isinstance(self.ffn, SwitchFeedForward):
            y_BSD, routing = self.ffn(h_BSD, ids_BS=ids_BS, position_S=position_S, capacity_factor=capacity_factor)
        else:
            y_BSD, routing = self.ffn(h_BSD), None
        return x_BSD + self.dropout(y_BSD), routing


def switch_layer(config: ModelConfig, router: Router) -> SwitchFeedForward:
    """A new Switch layer of a configured model."""
    return SwitchFeedForward(
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_experts=config.num_experts,
        capacity_factor=config.capacity_factor,
        eval_capacity_factor=config.eval_capacity_factor,
        router=router,
        activation=config.activation,
        expert_dropout=config.expert_dropout,
        shared_expert=config.shared_expert,
        init_scale=config.init_scale,
    )


class SwitchLM(nn.Module):
    """A decoder-only language model in which every `switch_every`-th block, or none, has a Switch layer.

    `router` and `balance`: the options of its routers, by default those of `switch`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        *,
        router: RouterOptions | None = None,
        balance: BalanceOptions | None = None,
    ) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.router_options, self.balance = router or SwitchOptions(), balance or BalanceOptions()
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
        self.blocks = nn.ModuleList(
            Block(config, self._new_router() if config.is_switch(block) else None) for block in range(config.num_layers)
        )
        self.norm = RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        initialize(self, config.init_scale)
        self.prepare_routers(torch.ones(vocab_size, dtype=torch.int64))

    def prepare_routers(self, counts_V: Tensor, *, max_steps: int | None = None) -> None:
        """Tells all routers how often each character stands in the text to train on, and the run's steps."""
        for router in self.routers:
            router.prepare(counts_V, max_steps=max_steps)

    def _new_router(self) -> Router:
        router: Router = load("router", self.router_options.name)(
            self.router_options,
            d_model=self.config.d_model,
            num_experts=self.config.num_experts,
            balance=self.balance,
        )
        stated = self.router_options.num_params(self.config.d_model, self.config.num_experts)
        weights = sum(weight.numel() for weight in router.parameters())
        if weights != stated:
            raise ValueError(
                f"router={self.router_options.name}: num_params of its Options states {stated:,} weights in a layer, "
                f"and it has {weights:,}: let num_params return that, since the plan, the ledger and the report use it"
            )
        return router

    @property
    def switch_layers(self) -> list[SwitchFeedForward]:
        """All Switch layers in order of depth; empty for a dense model."""
        return [layer for layer in self.modules() if isinstance(layer, SwitchFeedForward)]

    @property
    def routers(self) -> list[Router]:
        """The routers of all Switch layers in order of depth."""
        return [layer.router for layer in self.switch_layers]

    def router_parameters(self) -> list[nn.Parameter]:
        """The weights of all routers."""
        return [weight for router in self.routers for weight in router.parameters()]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices of attention and feed-forwards (O, I), and stacks of an expert's (E, I, O), in order of depth."""
        parts = [module for module in self.modules() if isinstance(module, Attention | FeedForward | Experts)]
        of_routers = set(self.router_parameters())  # which may have feed-forwards of their own
        return [w for part in parts for w in part.parameters() if w.dim() >= 2 and w not in of_routers]

    def aux_losses(self, routings: Sequence[Routing]) -> dict[str, Tensor]:
        """The routers' own losses by name, each added up over the layers; 0 balance for a dense model."""
        of_layers = [router.aux_losses(one) for router, one in zip(self.routers, routings, strict=True)]
        names = dict.fromkeys(name for losses in of_layers for name in losses)
        sums = {name: torch.stack([losses[name] for losses in of_layers if name in losses]).sum() for name in names}
        return {"balance": torch.zeros(())} | sums

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
        position_S = torch.arange(start, end, device=ids_BS.device)
        routings = []
        for i, block in enumerate(self.blocks):
            x_BSD, routing = block(
                x_BSD,
                ids_BS=ids_BS,
                position_S=position_S,
                rotation=rotation,
                cache=None if cache is None else cache[i],
                capacity_factor=capacity_factor,
            )
            if routing is not None:
                routings.append(routing)
        return SwitchOutput(self.head(self.norm(x_BSD)), tuple(routings))


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


@contextmanager
def choosing_as_trained(model: SwitchLM) -> Iterator[None]:
    """For the block, a router that evaluates by another rule than it trains by, as expert choice does, keeps to that.

    Nothing else changes: noise follows the model's mode.
    """
    for router in model.routers:
        router.as_trained = True
    try:
        yield
    finally:
        for router in model.routers:
            router.as_trained = False
