"""Which variant another is compared with: what is equal between them, and the control of a sweep."""

import math
from collections.abc import Sequence

from switch_lm.reporting.keys import is_routing
from switch_lm.reporting.variants import EXPERTS, Variant

LOSS, TRAIN_CAPACITY = "val_loss", "val_loss_train_capacity"
EQUAL_COMPUTATION = "equal computation by the model's products"
EQUAL_TOTAL = "equal computation by all products"  # with the optimizer's
EQUAL_PARAMETERS, UNEQUAL = "equal parameters", "unequal computation"
EQUAL = (EQUAL_COMPUTATION, EQUAL_TOTAL)
TRAINING, OPTIMIZER = "computation.training", "computation.optimizer"
ROUTER, FORWARD = "computation.forward_per_token.router", "computation.forward_per_token.executed"
MACHINE = ("device", "name", "precision", "threads", "compile")  # what seconds depend on
SAME_WORK = 0.02  # capacities are rounded up to whole slots; more padding than this is no rounding
MANY_KEYS = 3  # more differing keys than this are not named


def is_control(sparse: Variant, dense: Variant) -> bool:
    """A sparse and a dense variant of the same training, text and sizes, but perhaps another d_ff."""
    if sparse.dense or not dense.dense:
        return False
    keys = (sparse.config.keys() | dense.config.keys()) - {"model.d_ff"}
    return all(is_routing(key) or sparse.config.get(key) == dense.config.get(key) for key in keys)


def matches_computation(sparse: Variant, dense: Variant) -> bool:
    """Whether they execute the same but for the router: equal sizes and training, one expert per token, no padding.

    That is so at capacity factor 1.0 or dropless, top-1 and without a shared expert, unless the ledger shows padding.
    The optimizer's products are not counted.
    """
    one_each = sparse.config.get("router.top_k") == 1 and not sparse.config["model.shared_expert"]
    fits = (
        one_each and sparse.capacity_factor in (None, 1.0) and sparse.config["model.d_ff"] == dense.config["model.d_ff"]
    )
    if not fits or not is_control(sparse, dense):
        return False
    own, router, other = sparse.mean(FORWARD), sparse.mean(ROUTER), dense.mean(FORWARD)
    if own is None or router is None or other is None:
        return True
    return abs((own - router) / other - 1.0) <= SAME_WORK


def matches_total(sparse: Variant, dense: Variant) -> bool:
    """Whether training takes as many products of both, with the optimizer's, all else but d_ff being equal."""
    more = more_in_all(sparse, dense)
    return is_control(sparse, dense) and more is not None and abs(more) <= SAME_WORK


def matches_parameters(sparse: Variant, dense: Variant) -> bool:
    """Whether the dense feed-forwards are as wide as all experts of a layer together, all else being equal."""
    experts, every = sparse.config[EXPERTS], sparse.config["model.switch_every"]
    if not is_control(sparse, dense) or every != 1 or sparse.config["model.shared_expert"]:
        return False
    return experts > 1 and bool(dense.config["model.d_ff"] == experts * sparse.config["model.d_ff"])


def kind_of(ours: Variant, theirs: Variant) -> str:
    """What is equal between a sparse variant and its dense control; of others, the keys in which they differ."""
    if is_control(ours, theirs):
        rules = {
            EQUAL_COMPUTATION: matches_computation,
            EQUAL_TOTAL: matches_total,
            EQUAL_PARAMETERS: matches_parameters,
        }
        return next((kind for kind, matches in rules.items() if matches(ours, theirs)), UNEQUAL)
    keys = sorted(ours.config.keys() | theirs.config.keys())
    if ours.dense != theirs.dense:  # a dense one has no routing keys
        keys = [key for key in keys if not is_routing(key)]
    differing = [key for key in keys if ours.config.get(key) != theirs.config.get(key)]
    return ", ".join(differing) if len(differing) <= MANY_KEYS else f"{len(differing)} keys"


def controls(variant: Variant, others: Sequence[Variant], overall: Variant) -> list[Variant]:
    """A sparse variant's dense controls by the model's products and by all, else the nearest, else `overall`."""
    dense = [other for other in others if is_control(variant, other)]
    equal = [other for other in dense if matches_computation(variant, other)][:1]
    total = [other for other in dense if matches_total(variant, other) and other not in equal][:1]
    as_wide = [other for other in dense if other.config["model.d_ff"] == variant.config["model.d_ff"]]
    result = equal + total or as_wide[:1] or dense[:1] or [overall]
    return [other for other in result if other is not variant]


def dense_control(variants: Sequence[Variant]) -> Variant | None:
    """The first that equals a sparse one in the model's products, or else is any control of one; None: no such."""
    for matches in (matches_computation, is_control):
        for dense in variants:
            if any(matches(sparse, dense) for sparse in variants):
                return dense
    return None


def more_training(ours: Variant, theirs: Variant) -> float | None:
    """By which share `ours` executes more in training than `theirs`, without the optimizer."""
    own, other = ours.mean(TRAINING), theirs.mean(TRAINING)
    return own / other - 1.0 if own is not None and other else None


def more_in_all(ours: Variant, theirs: Variant) -> float | None:
    """The same with the optimizer's products."""
    work = [variant.mean(figure) for variant in (ours, theirs) for figure in (TRAINING, OPTIMIZER)]
    known = [value for value in work if value is not None]
    own, other = math.fsum(known[:2]), math.fsum(known[2:])
    return own / other - 1.0 if len(known) == len(work) and other else None


def more_work(ours: Variant, theirs: Variant) -> str:
    """Both in words."""
    shares = (more(ours, theirs) for more in (more_training, more_in_all))
    return ", ".join(f"{100 * share:+.1f}%" for share in shares if share is not None)


def machines(*variants: Variant) -> set[str]:
    """On what the runs were computed; a run that does not say is taken to be on one unknown machine."""
    return {" ".join(str(r.result.get(f"hardware.{k}")) for k in MACHINE) for v in variants for r in v.runs}
