"""What a model is, as plain data: its sizes and rules, and how many parameters they make."""

from dataclasses import dataclass, fields

from switch_lm.config.keys import BELOW_ONE, POSITIVE, POSITIVE_OR_NULL, at_least, key, key_of, one_of, within
from switch_lm.routers.options import RoutingRule


@dataclass
class ModelConfig:
    """Sizes and rules of a `SwitchLM`."""

    num_layers: int = key(4, "Transformer blocks.", at_least(1))
    d_model: int = key(128, "Width of the residual stream.", at_least(1))
    num_heads: int = key(4, "Attention heads; each is d_model / num_heads wide.", at_least(1))
    d_ff: int = key(512, "Hidden width of a feed-forward, or of one expert.", at_least(1))
    context_length: int = key(128, "Characters the model sees at once.", at_least(1))
    position: str = key(
        "rotary",
        "How it knows positions: rotary (RoFormer), learned (one vector per position) or none.",
        one_of("rotary", "learned", "none"),
    )
    activation: str = key(
        "relu_squared",
        "Between the two matrices of a feed-forward: relu (the paper), relu_squared (Primer), gelu.",
        one_of("relu", "relu_squared", "gelu"),
    )
    tie_embeddings: bool = key(False, "Whether the head shares its matrix with the embedding.")
    dropout: float = key(
        0.0,
        "Dropout on the embedding and on what attention and feed-forwards add. Random numbers are expensive on a CPU.",
        BELOW_ONE,
    )
    init_scale: float = key(
        0.1,
        "Weights are drawn with a standard deviation of sqrt(init_scale / fan_in), truncated at 2 of "
        "them (paper, section 2.4).",
        POSITIVE,
    )
    switch_every: int = key(
        1,
        "Every n-th block has a Switch layer, the others a dense one; 0: none (paper, section 2 and Table 1).",
        at_least(0),
    )
    num_experts: int = key(8, "Experts in each Switch layer.", at_least(1))
    capacity_factor: float | None = key(
        1.25,
        "Slots of an expert = ceil(capacity_factor * tokens / num_experts), in training; null: no limit (paper, eq. "
        "3).",
        POSITIVE_OR_NULL,
    )
    eval_capacity_factor: float | None = key(
        None,
        "The same in validation and generation; null: no limit, so that nothing depends on the batch.",
        POSITIVE_OR_NULL,
    )
    top_k: int = key_of(RoutingRule, "top_k")
    renormalize_gates: bool = key_of(RoutingRule, "renormalize_gates")
    gate_scale: str = key_of(RoutingRule, "gate_scale")
    selection: str = key_of(RoutingRule, "selection")
    drop_order: str = key_of(RoutingRule, "drop_order")
    queue_order: str = key_of(RoutingRule, "queue_order")
    overflow: str = key_of(RoutingRule, "overflow")
    capacity_group: str = key_of(RoutingRule, "capacity_group")
    random_drop_rate: float = key_of(RoutingRule, "random_drop_rate")
    router_jitter: float = key(
        0.01,
        "The router's input is multiplied by U(1 - eps, 1 + eps) in training (paper, section 2.4 and appendix C).",
        BELOW_ONE,
    )
    router_input_dropout: float = key(0.0, "Dropout on the router's input in training (paper, appendix C).", BELOW_ONE)
    expert_dropout: float = key(
        0.0,
        "Dropout inside the experts in training; the paper fine-tunes with 0.4 (section 2.4).",
        BELOW_ONE,
    )
    selection_bias_rate: float = key(
        0.0,
        "Balance by a bias on the selection, moved by this much after each step; 0: none (DeepSeek-V3; then use "
        "alpha=0).",
        within(0, 1),
    )
    shared_expert: bool = key(False, "One more feed-forward of width d_ff that every token passes (DeepSeekMoE).")

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
