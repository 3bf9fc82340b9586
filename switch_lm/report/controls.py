"""Which dense variant is a fair control of which sparse one, and by how much their computation differs."""

from __future__ import annotations

from collections.abc import Iterable

from switch_lm.report.groups import Variant
from switch_lm.report.keys import is_routing

TRAINING, OPTIMIZER = "computation.training", "computation.optimizer"
ROUTER, FORWARD = "computation.forward_per_token.router", "computation.forward_per_token.executed"
SAME_WORK = 0.02  # places are rounded up to whole ones; more padding than this is no rounding


def matches_computation(sparse: Variant, dense: Variant) -> bool:
    """Whether they execute the same but for the router: equal sizes and training, one expert a token, no padding.

    That is so at capacity factor 1.0 or dropless, top-1 and without a shared expert.
    """
    if not is_control(sparse, dense) or sparse.config["model.d_ff"] != dense.config["model.d_ff"]:
        return False
    if sparse.config["model.top_k"] != 1 or sparse.config["model.shared_expert"]:
        return False
    return sparse.capacity_factor in (None, 1.0) and _works_the_same(sparse, dense)


def matches_parameters(sparse: Variant, dense: Variant) -> bool:
    """Whether the dense feed-forwards are as wide as all experts of a layer together, all else being equal."""
    experts, every = sparse.config["model.num_experts"], sparse.config["model.switch_every"]
    if not is_control(sparse, dense) or every != 1 or sparse.config["model.shared_expert"]:
        return False
    return experts > 1 and bool(dense.config["model.d_ff"] == experts * sparse.config["model.d_ff"])


def is_control(sparse: Variant, dense: Variant) -> bool:
    """A sparse and a dense variant of the same training, text and sizes, but perhaps another d_ff."""
    if sparse.dense or not dense.dense:
        return False
    keys = (sparse.config.keys() | dense.config.keys()) - {"model.d_ff"}
    return all(is_routing(key) or sparse.config.get(key) == dense.config.get(key) for key in keys)


def same_width(sparse: Variant, dense: Variant) -> bool:
    """A control that differs by the routing alone."""
    return is_control(sparse, dense) and bool(sparse.config["model.d_ff"] == dense.config["model.d_ff"])


def control_of(sparse: Variant, variants: Iterable[Variant]) -> Variant | None:
    """Its dense control of equal computation, if there is one."""
    return next((dense for dense in variants if matches_computation(sparse, dense)), None)


def more_training(ours: Variant, theirs: Variant, *, optimizer: bool = False) -> float | None:
    """By which share `ours` executes more in training than `theirs`; with `optimizer`, its products count too."""
    own, other = (variant.mean(TRAINING) for variant in (ours, theirs))
    if own is None or not other:
        return None
    if optimizer:
        updates = [variant.mean(OPTIMIZER) for variant in (ours, theirs)]
        if updates[0] is None or updates[1] is None:
            return None
        own, other = own + updates[0], other + updates[1]
    return own / other - 1.0


def _works_the_same(sparse: Variant, dense: Variant) -> bool:
    """By the ledger, where both have one, without the router's products."""
    own, other, router = sparse.mean(FORWARD), dense.mean(FORWARD), sparse.mean(ROUTER)
    if own is None or other is None or router is None:
        return True
    return abs((own - router) / other - 1.0) <= SAME_WORK
