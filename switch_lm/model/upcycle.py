"""Starts a model from the weights of another one: the same layers, or Switch layers from dense ones.

Source of the second: Komatsuzaki et al., "Sparse Upcycling" (2023), section 3.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM

# What must be equal in both models, so that the copied weights mean the same; then what must be where both route.
SHARED = (
    "num_layers", "d_model", "num_heads", "d_ff", "context_length", "position", "activation", "tie_embeddings",
)  # fmt: skip
OF_SWITCH = ("num_experts", "shared_expert")
BY_CHARACTER = ("embedding.weight", "head.weight", ".router.expert_V")  # ends of names: a row for each character


def start_from(
    model: SwitchLM, source: SwitchLM, *, characters: tuple[str, str] | None = None, noise: float = 0.0, seed: int = 0
) -> None:
    """Copies the weights of `source` into `model`, in place.

    `characters`: of `model` and of `source`, None if they are the same. A character has the row that it had there, and
    one that is new the row that was drawn. Where only `model` has a Switch layer, each expert begins as a copy of the
    dense feed-forward, plus normal noise of `noise` times the matrix's standard deviation, drawn from `seed`; routers
    keep their initial weights. Without noise, and with top_k=1, straight-through gates and no capacity, `model` then
    computes what `source` does. ValueError, before anything is changed, if the sizes or the layers do not fit.
    """
    if different := list(_differences(model, source)):
        raise ValueError(f"it has other sizes: {', '.join(different)}; train both with the same")
    start, given = model.state_dict(), source.state_dict()
    generator = torch.Generator().manual_seed(seed)

    def copies(w_IO: Tensor, num_experts: int) -> Tensor:
        if not noise:
            return w_IO.expand(num_experts, -1, -1)
        return w_IO + noise * w_IO.std() * torch.randn(num_experts, *w_IO.shape, generator=generator)

    for name, layer in model.named_modules():
        if isinstance(layer, SwitchFeedForward) and f"{name}.w_in.weight" in given:
            w_in, w_out = given.pop(f"{name}.w_in.weight"), given.pop(f"{name}.w_out.weight")
            given[f"{name}.experts.w_in_EDF"] = copies(w_in.T, layer.num_experts)
            given[f"{name}.experts.w_out_EFD"] = copies(w_out.T, layer.num_experts)
            if layer.shared is not None:
                given[f"{name}.shared.w_in.weight"], given[f"{name}.shared.w_out.weight"] = w_in, w_out
    if characters is not None and characters[0] != characters[1]:
        here, there = characters
        both = [character for character in here if character in there]
        rows, rows_there = ([one.index(character) for character in both] for one in characters)
        for name in [name for name in given if name.endswith(BY_CHARACTER)]:
            new = start[name].clone()
            new[rows] = given[name][rows_there]
            given[name] = new
    model.load_state_dict(start | {name: weight for name, weight in given.items() if name in start})


def _differences(model: SwitchLM, source: SwitchLM) -> Iterator[str]:
    """Each in words."""
    here, there = model.config, source.config
    routed = [block for block in there.switch_blocks if block in here.switch_blocks]
    for key in (*SHARED, *(OF_SWITCH if routed else ())):
        if (was := getattr(there, key)) != (now := getattr(here, key)):
            yield f"model.{key} is {was} there and {now} here"
    if routed and (was := source.router_options.name) != (now := model.router_options.name):
        yield f"router={was} there and {now} here"
    if routed != there.switch_blocks:
        yield f"the Switch layers are blocks {there.switch_blocks} there and {here.switch_blocks or 'none'} here"
