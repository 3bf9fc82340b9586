"""Initialises a Switch model from a dense one: every expert begins as a copy of the dense feed-forward.

Source: Komatsuzaki et al., "Sparse Upcycling" (2023), section 3.
"""

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM

# What must be equal in both models, so that the copied weights mean the same.
SHARED = (
    "num_layers", "d_model", "num_heads", "d_ff", "context_length", "position", "activation", "tie_embeddings",
)  # fmt: skip


def upcycle(model: SwitchLM, dense: SwitchLM) -> None:
    """Copies the weights of `dense` into `model`, in place; routers keep their initial weights.

    With top_k=1, straight-through gates and no capacity, `model` then computes what `dense` does. ValueError, before
    anything is changed, if `dense` has Switch layers or different sizes; the message names them.
    """
    if dense.config.num_switch_layers:
        raise ValueError("the model to start from must be dense: it has Switch layers (train one with model=dense)")
    there, here = (vars(lm.config) | {"vocab_size": lm.vocab_size} for lm in (dense, model))
    if different := [key for key in (*SHARED, "vocab_size") if there[key] != here[key]]:
        listed = ", ".join(f"model.{key} is {there[key]} there and {here[key]} here" for key in different)
        raise ValueError(f"the dense model has other sizes: {listed}; train both with the same")
    start, given = model.state_dict(), dense.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, SwitchFeedForward):
            w_in, w_out = given.pop(f"{name}.w_in.weight"), given.pop(f"{name}.w_out.weight")
            start[f"{name}.experts.w_in_EDF"] = w_in.T.expand(layer.num_experts, -1, -1)
            start[f"{name}.experts.w_out_EFD"] = w_out.T.expand(layer.num_experts, -1, -1)
            if layer.shared is not None:
                start[f"{name}.shared.w_in.weight"], start[f"{name}.shared.w_out.weight"] = w_in, w_out
    model.load_state_dict(start | given)
