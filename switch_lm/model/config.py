"""What a model is, as plain data: its sizes and rules, and how many parameters they make."""

from dataclasses import dataclass

from switch_lm.config.keys import BELOW_ONE, POSITIVE, POSITIVE_OR_NULL, at_least, key, one_of, within
from switch_lm.routers.options import RouterOptions


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
    switch_layers: list[int] | None = key(  # noqa: RUF009  None is no list
        None,
        "Which blocks have a Switch layer, by number from 0, such as [1,3]; null: switch_every decides.",
    )
    num_experts: int = key(8, "Experts in each Switch layer.", at_least(1), short="exp")
    capacity_factor: float | None = key(
        1.25,
        "Slots of an expert = ceil(capacity_factor * tokens / num_experts), in training; null: no limit (paper, eq. "
        "3).",
        POSITIVE_OR_NULL,
        short="cap",
    )
    eval_capacity_factor: float | None = key(
        None,
        "The same in validation and generation; null: no limit, so that nothing depends on the batch.",
        POSITIVE_OR_NULL,
    )
    expert_dropout: float = key(
        0.0,
        "Dropout inside the experts in training; the paper fine-tunes with 0.4 (section 2.4).",
        BELOW_ONE,
    )
    upcycle_noise: float = key(
        0.0,
        "With init_from a dense run: noise on each expert's copy of the feed-forward, as a share of its standard "
        "deviation, so that the experts begin different; 0: plain copies.",
        within(0, 10),
    )
    shared_expert: bool = key(False, "One more feed-forward of width d_ff that every token passes (DeepSeekMoE).")

    def is_switch(self, block: int) -> bool:
        """Whether block number `block` (from 0) has a Switch layer."""
        if self.switch_layers is not None:
            return block in self.switch_layers
        return self.switch_every > 0 and (block + 1) % self.switch_every == 0

    @property
    def switch_blocks(self) -> list[int]:
        """The numbers of the blocks that have a Switch layer, from 0: what tags, tables and messages call a layer."""
        return [block for block in range(self.num_layers) if self.is_switch(block)]

    @property
    def num_switch_layers(self) -> int:
        return len(self.switch_blocks)

    def num_params(self, vocab_size: int, router: RouterOptions) -> int:
        """Parameters of the whole model with such routers."""
        return self._shared_params(vocab_size, router) + self.num_switch_layers * self.num_experts * self._ffn_params()

    def num_active_params(self, vocab_size: int, router: RouterOptions) -> int:
        """Parameters that one token meets: of each Switch layer the router and the experts that it selects."""
        experts = self.num_switch_layers * router.experts_per_token(self.num_experts, self.capacity_factor)
        return self._shared_params(vocab_size, router) + round(experts * self._ffn_params())

    def _ffn_params(self) -> int:
        return 2 * self.d_model * self.d_ff

    def _shared_params(self, vocab_size: int, router: RouterOptions) -> int:
        embedding = vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        positions = self.context_length * self.d_model if self.position == "learned" else 0
        norms = (2 * self.num_layers + 1) * self.d_model
        attention = self.num_layers * 4 * self.d_model**2
        num_dense = self.num_layers - self.num_switch_layers + (self.num_switch_layers if self.shared_expert else 0)
        dense = num_dense * self._ffn_params()
        routers = self.num_switch_layers * router.num_params(self.d_model, self.num_experts)
        return embedding + positions + norms + attention + dense + routers
