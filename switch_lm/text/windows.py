"""Splits of a text, and their windows."""

from collections.abc import Iterator

from torch import Tensor

TRAIN_SHARE = 0.9  # nanoGPT, data/shakespeare_char/prepare.py
MIN_TRAINING_WINDOWS = 2  # room for one that begins at a random offset


def split(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first 90 % of the ids (N,) for training, and the last 10 % for validation."""
    num_train = int(TRAIN_SHARE * len(ids))
    return ids[:num_train], ids[num_train:]


def too_short(num_training: int, num_validation: int, *, context_length: int) -> str | None:
    """A message with the split that is too short, its minimum and the fix; None if both are long enough."""
    needed = MIN_TRAINING_WINDOWS * context_length
    if num_training < needed:
        rule = f"{MIN_TRAINING_WINDOWS} windows of model.context_length={context_length} need at least {needed}"
        fix = "use a longer text or a smaller model.context_length"
        return f"the training split has {num_training} characters; {rule}; {fix}"
    return validation_too_short(num_validation)


def validation_too_short(num_validation: int) -> str | None:
    """The same for the validation split alone: a prediction needs two characters, whatever the context."""
    if num_validation >= 2:
        return None
    count = f"{num_validation} character{'s' * (num_validation != 1)}"
    return f"the validation split (the last 10 % of the text) has {count}; it needs at least 2; use a longer text"


def evaluation_batches(ids: Tensor, *, context_length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields inputs and targets, both (B, S), from the ids (N,) of a split. Each id but the first is a target once.

    The last batch of full windows may be smaller than `batch_size`; a last shorter window is a batch of its own.
    """
    num_windows, rest = divmod(len(ids) - 1, context_length)
    whole = num_windows * context_length
    inputs_NS = ids[:whole].view(num_windows, context_length)
    targets_NS = ids[1 : whole + 1].view(num_windows, context_length)
    for start in range(0, num_windows, batch_size):
        yield inputs_NS[start : start + batch_size], targets_NS[start : start + batch_size]
    if rest:
        yield ids[None, whole:-1], ids[None, whole + 1 :]


def fixed_windows(ids: Tensor, *, context_length: int, num_windows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (B, S), of up to `num_windows` windows spread evenly over the ids (N,) of a split.

    Windows do not overlap. A split that is too short for one window gives one shorter window.
    """
    length = min(context_length, len(ids) - 1)
    rows = min(num_windows, (len(ids) - 1) // length)
    window_BS = ids.unfold(0, length + 1, 1)[:: (len(ids) - 1) // rows][:rows]
    return window_BS[:, :-1].contiguous(), window_BS[:, 1:].contiguous()
