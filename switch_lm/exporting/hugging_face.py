"""The model for transformers: its configuration, forward pass and cache. Never imported here: an export holds it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from switch_lm.config.families import FAMILIES
from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.options import BalanceOptions


class SwitchLMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers may not be installed
    """`switch_lm`: the options of model, router and balance, and how it was trained."""

    model_type = "switch_lm"

    def __init__(self, switch_lm: dict[str, Any] | None = None, vocab_size: int = 1, **others: Any) -> None:
        self.switch_lm, self.vocab_size = switch_lm or {}, vocab_size
        super().__init__(**others)


class BlockCache:
    """The keys and values of one block in a cache of transformers, as `Attention` reads them."""

    def __init__(self, cache: Any, block: int) -> None:
        self.cache, self.block = cache, block

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length(self.block))

    def append(self, key_BHSW: Tensor, value_BHSW: Tensor) -> tuple[Tensor, Tensor]:
        keys_BHSW, values_BHSW = self.cache.update(key_BHSW, value_BHSW, self.block)
        return keys_BHSW, values_BHSW


class SwitchLMForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """`SwitchLM`. In training the capacity of training holds; the loss is the language loss alone."""

    config_class = SwitchLMConfig
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012  as in transformers

    def __init__(self, config: SwitchLMConfig) -> None:
        super().__init__(config)
        options = config.switch_lm
        router = FAMILIES["router"][options["router"]["name"]].options(**options["router"])
        with torch.device("cpu"):  # not on meta, where a router cannot count characters
            self.model = SwitchLM(
                ModelConfig(**options["model"]),
                config.vocab_size,
                router=router,
                balance=BalanceOptions(**options["balance"]),
            )
        held = self.model.state_dict()
        self.derived = {name: x.clone() for name, x in self.model.named_buffers() if name not in held}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """transformers empties the buffers that follow from the sizes, which no file holds."""
        for name, value in self.derived.items():
            self.model.get_buffer(name).copy_(value)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, V). `labels`: the same ids, which are shifted here; -100 is left out."""
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("switch_lm reads texts without padding: give texts of equal length, or one at a time")
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        blocks = range(self.model.config.num_layers)
        cache: Any = None if past_key_values is None else [BlockCache(past_key_values, block) for block in blocks]
        logits = self.model(input_ids, cache=cache).logits
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **others: Any
    ) -> dict[str, Any]:
        """The characters to read next. Once the context is full, it starts again from the last half of it."""
        most = self.model.config.context_length
        length = 0 if past_key_values is None else past_key_values.get_seq_length()
        unread = input_ids[:, -1:] if length else input_ids[:, -most:]
        if length >= most:
            past_key_values, unread = DynamicCache(), input_ids[:, -max(1, most // 2) :]
        return {"input_ids": unread, "past_key_values": past_key_values}
