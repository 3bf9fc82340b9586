"""The loss of each character of a window, read as a whole or character by character."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

from switch_lm.model.transformer import SwitchLM

LOGITS = 2**24


def negative_log_likelihood(logits: Tensor, target_BS: Tensor) -> Tensor:
    """The loss of each character of `target_BS` in nats (B, S), from logits (B, S, V)."""
    rows = max(1, LOGITS // logits[0].numel())  # at a time: the copies that this takes are as large as the logits
    parts = zip(logits.split(rows), target_BS.split(rows), strict=True)
    return torch.cat([F.cross_entropy(part.mT.float(), target, reduction="none") for part, target in parts])


def whole(
    model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, *, capacity_factor: float | EllipsisType | None = ...
) -> Tensor:
    """The loss of each target in nats (B, S), with all windows read in one pass, in the model's mode.

    `capacity_factor`, if given, replaces the configured one; None is dropless.
    """
    with torch.inference_mode():
        return negative_log_likelihood(model(ids_BS, capacity_factor=capacity_factor).logits, target_BS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: in passes over a few characters, more threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def character_by_character(
    model: SwitchLM, ids_BS: Tensor, target_BS: Tensor, *, before_each: Callable[[], None] = lambda: None
) -> Tensor:
    """The same with the windows read as in generation: one character per pass, through the cache, dropless."""
    cache, logits = model.new_cache(), []
    with torch.inference_mode(), one_thread():
        for id_B1 in ids_BS.split(1, dim=1):
            before_each()
            logits.append(model(id_B1, cache=cache, capacity_factor=None).logits)
        return negative_log_likelihood(torch.cat(logits, dim=1), target_BS)
