"""How surprising each character of a window is: the window read as a whole, or one character after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.model.transformer import SwitchLM


def negative_log_likelihood(logits: Tensor, target_BS: Tensor) -> Tensor:
    """Nats (B, S) of each character of `target_BS` under logits (B, S, V)."""
    return F.cross_entropy(logits.mT.float(), target_BS, reduction="none")


def whole(
    model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, *, capacity_factor: float | EllipsisType | None = ...
) -> Tensor:
    """Nats (B, S) of each target where all windows are read in one pass, in the model's mode.

    `capacity_factor`, where given, stands in for the configured one (None is dropless).
    """
    with torch.inference_mode():
        return negative_log_likelihood(model(ids_BS, capacity_factor=capacity_factor).logits, target_BS)


@contextmanager
def one_thread() -> Iterator[None]:
    """For passes over a character or a few: too little to share, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def character_by_character(model: SwitchLM, ids_BS: Tensor, target_BS: Tensor) -> Tensor:
    """The same read as in generation: one character of each window per pass, through the cache, nothing dropped."""
    cache = model.new_cache()
    with torch.inference_mode(), one_thread():
        logits = [model(id_B1, cache=cache, capacity_factor=None).logits for id_B1 in ids_BS.split(1, dim=1)]
        return negative_log_likelihood(torch.cat(logits, dim=1), target_BS)
