"""Which keys of a configuration change what is computed, and for whom."""

from collections.abc import Mapping
from typing import Any

from switch_lm.config.schema import changes_result

# What a dense model has too; every other model.* key is one of routing.
SIZES = {
    "num_layers", "d_model", "num_heads", "d_ff", "context_length", "position", "activation", "tie_embeddings",
    "dropout", "init_scale",
}  # fmt: skip
ROUTING_LOSSES = {"alpha", "z_loss", "importance"}


def is_ignored(key: str) -> bool:
    """Whether runs that differ in this key repeat each other."""
    return key == "seed" or not changes_result(key)


def is_of_router(key: str) -> bool:
    """Whether it is a key of the routers alone, of which a run has those that its own router knows."""
    return key.startswith(("router.", "balance.")) or key == "optim.router_lr"


def is_routing(key: str) -> bool:
    """Whether a dense model is the same whatever the key holds."""
    return (
        is_of_router(key)
        or key in ROUTING_LOSSES
        or (key.startswith("model.") and key.removeprefix("model.") not in SIZES)
    )


def is_dense(config: Mapping[str, Any]) -> bool:
    """Whether no block has a Switch layer."""
    if (layers := config.get("model.switch_layers")) is not None:
        return not layers
    every = config.get("model.switch_every") or 0
    return bool(every == 0 or every > config["model.num_layers"])
