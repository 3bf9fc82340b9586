"""What a model is, as plain data: its sizes and rules, and how many parameters they make."""

from __future__ import annotations

from dataclasses import dataclass, fields

from switch_lm.routers.options import RoutingRule


@dataclass
class ModelConfig:
    """Sizes and rules of a `SwitchLM`. configs/model/*.yaml hold the shipped values and say what each key means."""

    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    d_ff: int = 512
    context_length: int = 128
    position: str = "rotary"
    activation: str = "relu_squared"
    tie_embeddings: bool = False
    dropout: float = 0.0
    init_scale: float = 0.1
    switch_every: int = 1
    num_experts: int = 8
    capacity_factor: float | None = 1.25
    eval_capacity_factor: float | None = None
    top_k: int = 1
    renormalize_gates: bool = False
    gate_scale: str = "probability"
    selection: str = "argmax"
    drop_order: str = "position"
    queue_order: str = "token"
    overflow: str = "drop"
    capacity_group: str = "batch"
    random_drop_rate: float = 0.0
    router_jitter: float = 0.01
    router_input_dropout: float = 0.0
    expert_dropout: float = 0.0
    selection_bias_rate: float = 0.0
    shared_expert: bool = False

    @property
    def rule(self) -> RoutingRule:
        """How its routers work."""
        return RoutingRule(**{field.name: getattr(self, field.name) for field in fields(RoutingRule)})

    def is_switch(self, block: int) -> bool:
        """Whether block number `block` (from 0) has a Switch layer: every `switch_every`-th does, none if it is 0."""
        return self.switch_every > 0 and (block + 1) % self.switch_every == 0

    @property
    def num_switch_layers(self) -> int:
        return sum(self.is_switch(block) for block in range(self.num_layers))

    def num_params(self, vocab_size: int) -> int:
        """Parameters of the whole model."""
        return self._shared_params(vocab_size) + self.num_switch_layers * self.num_experts * self._ffn_params()

    def num_active_params(self, vocab_size: int) -> int:
        """Parameters that one token meets: of each Switch layer the router and `top_k` experts."""
        return self._shared_params(vocab_size) + self.num_switch_layers * self.top_k * self._ffn_params()

    def _ffn_params(self) -> int:
        return 2 * self.d_model * self.d_ff

    def _shared_params(self, vocab_size: int) -> int:
        embedding = vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        positions = self.context_length * self.d_model if self.position == "learned" else 0
        norms = (2 * self.num_layers + 1) * self.d_model
        attention = self.num_layers * 4 * self.d_model**2
        num_dense = self.num_layers - self.num_switch_layers + (self.num_switch_layers if self.shared_expert else 0)
        dense = num_dense * self._ffn_params()
        routers = self.num_switch_layers * self.d_model * self.num_experts
        return embedding + positions + norms + attention + dense + routers
