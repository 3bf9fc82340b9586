"""Other implementations of the layer, each with our router's weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

NOTES = (
    "labml-nn: capacity over the whole batch, rounded down; random drops; dropped tokens are passed through. Its layer "
    "allocates its output in the input's type; under autocast its experts' rows are bfloat16, and there it crashes.",
    "transformers: capacity per row (S / E at factor 1.0, at least 1). router_jitter_noise is 0, since it multiplies "
    "its input in place, which a leaf that needs a gradient does not allow; ours has its default jitter of 0.01.",
    "mixture-of-experts and st-moe-pytorch: capacity per row, at least 4 slots per expert. Both choose two experts. "
    "mixture-of-experts can drop the second (policy `none`), and does here. st-moe-pytorch cannot have fewer than two: "
    "its threshold is set so high that nearly all second choices are left out, at the cost of finding them. Its expert "
    "is a GEGLU of 2/3 the width, about the same number of products, with biases and GELU.",
    "All have our router's weights, so that all see the same preferences. Biases of routers are zero.",
)


@dataclass(frozen=True)
class LayerSizes:
    """One Switch layer and its input, `rows` x `positions` tokens."""

    rows: int
    positions: int
    d_model: int
    d_ff: int
    num_experts: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.positions


Built = tuple[nn.Module, Callable[[Tensor], Tensor]]  # and how its call gives what is added to the residual
Make = Callable[[LayerSizes, Tensor, bool], Built]


def peers(*, dropless: bool) -> dict[str, Make]:
    """Those that have such a layer."""
    both: dict[str, Make] = {"labml-nn": labml, "transformers": hugging}
    return both if dropless else both | {"mixture-of-experts": lucidrains, "st-moe-pytorch": st_moe}


def build(make: Make, sizes: LayerSizes, w_DE: Tensor, *, dropless: bool) -> Built:
    """In training mode. Whatever importing or building raises is the result of this peer."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # a peer's warnings do not concern us
        layer, call = make(sizes, w_DE, dropless)
    return layer.train(), call


def labml(sizes: LayerSizes, w_DE: Tensor, dropless: bool) -> Built:
    switch: Any = import_module("labml_nn.transformers.switch")
    layer = switch.SwitchFeedForward(
        capacity_factor=1.0,
        drop_tokens=not dropless,
        is_scale_prob=True,
        n_experts=sizes.num_experts,
        expert=switch.FeedForward(sizes.d_model, sizes.d_ff, 0.0),
        d_model=sizes.d_model,
    )
    layer.switch.weight.copy_(w_DE.T)
    layer.switch.bias.zero_()
    return layer, lambda x: layer(x)[0]


def hugging(sizes: LayerSizes, w_DE: Tensor, dropless: bool) -> Built:
    module: Any = import_module("transformers.models.switch_transformers.modeling_switch_transformers")
    config = module.SwitchTransformersConfig(
        d_model=sizes.d_model,
        d_ff=sizes.d_ff,
        num_experts=sizes.num_experts,
        expert_capacity=sizes.positions if dropless else -(-sizes.positions // sizes.num_experts),
        router_jitter_noise=0.0,
        dropout_rate=0.0,
    )
    layer = module.SwitchTransformersSparseMLP(config)
    layer.router.classifier.weight.copy_(w_DE.T)
    return layer, layer


def lucidrains(sizes: LayerSizes, w_DE: Tensor, dropless: bool) -> Built:
    module: Any = import_module("mixture_of_experts")
    layer = module.MoE(
        sizes.d_model,
        num_experts=sizes.num_experts,
        hidden_dim=sizes.d_ff,
        second_policy_train="none",
        capacity_factor_train=1.0,
    )
    layer.gate.w_gating.copy_(w_DE)
    return layer, lambda x: layer(x)[0]


def st_moe(sizes: LayerSizes, w_DE: Tensor, dropless: bool) -> Built:
    module: Any = import_module("st_moe_pytorch")
    layer = module.MoE(
        sizes.d_model,
        num_experts=sizes.num_experts,
        expert_hidden_mult=sizes.d_ff / sizes.d_model,
        threshold_train=1e6,
        capacity_factor_train=1.0,
    )
    layer.gate.to_gates.weight.copy_(w_DE.T)
    return layer, lambda x: layer(x)[0]
