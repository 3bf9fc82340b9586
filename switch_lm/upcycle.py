"""Starts a Switch model from a dense one: every expert begins as a copy of the dense feed-forward.

Source: Komatsuzaki et al., "Sparse Upcycling" (2023), section 3.
"""

from __future__ import annotations

from torch import Tensor

from switch_lm.model import SwitchLM
from switch_lm.switch import SwitchFeedForward


def upcycle(model: SwitchLM, dense: SwitchLM) -> None:
    """Copies the weights of `dense` into `model`, in place; routers keep their fresh start.

    ValueError, before anything is changed, if `dense` has Switch layers or other sizes; it names what differs. With
    one straight-through choice and no limit, `model` then computes what `dense` does.
    """
    if dense.config.num_switch_layers:
        raise ValueError("the model to start from must be dense: it has Switch layers (train one with model=dense)")
    given = dense.state_dict()
    start = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, SwitchFeedForward):
            w_in, w_out = given.pop(f"{name}.w_in.weight"), given.pop(f"{name}.w_out.weight")
            start[f"{name}.experts.w_in_EDF"] = w_in.T.expand(layer.num_experts, -1, -1)
            start[f"{name}.experts.w_out_EFD"] = w_out.T.expand(layer.num_experts, -1, -1)
            if layer.shared is not None:
                start[f"{name}.shared.w_in.weight"], start[f"{name}.shared.w_out.weight"] = w_in, w_out
    start.update(given)
    _check_shapes(start, model.state_dict())
    model.load_state_dict(start)


def _check_shapes(start: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """All names and shapes as wanted, or a ValueError with the first that is not."""
    for name in start.keys() | wanted.keys():
        if name not in start or name not in wanted or start[name].shape != wanted[name].shape:
            got, want = (tuple(d[name].shape) if name in d else "missing" for d in (start, wanted))
            raise ValueError(
                f"the dense model has other sizes: {name} is {got} and should be {want}; "
                "train both with the same model.* sizes and the same text"
            )
