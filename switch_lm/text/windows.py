"""Splits of a text, and their windows. Ids may be of any integer type; those of a window are int64."""

from collections.abc import Iterator

from torch import Tensor

MIN_TRAINING_WINDOWS = 2  # room for one that begins at a random offset


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
    return f"the validation split has {count}; it needs at least 2; use a longer text"


class EvaluationBatches:
    """Inputs and targets, both (B, S), from the ids (N,) of a split. Each id but the first is a target once.

    The last batch of full windows may be smaller than `batch_size`; a last shorter window is a batch of its own.
    Nothing is kept but the ids.
    """

    def __init__(self, ids: Tensor, *, context_length: int, batch_size: int) -> None:
        self.ids, self.batch_size = ids, batch_size
        num_windows, self.rest = divmod(len(ids) - 1, context_length)
        self.whole = num_windows * context_length
        self.inputs_NS = ids[: self.whole].view(num_windows, context_length)
        self.targets_NS = ids[1 : self.whole + 1].view(num_windows, context_length)
        self.num_full = -(-num_windows // batch_size)  # batches of full windows

    def __len__(self) -> int:
        return self.num_full + (self.rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if number == self.num_full:
            return self.ids[None, self.whole : -1].long(), self.ids[None, self.whole + 1 :].long()
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.inputs_NS[rows].long(), self.targets_NS[rows].long()


def fixed_windows(ids: Tensor, *, context_length: int, num_windows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (B, S), of up to `num_windows` windows spread evenly over the ids (N,) of a split.

    Windows do not overlap. A split that is too short for one window gives one shorter window.
    """
    length = min(context_length, len(ids) - 1)
    rows = min(num_windows, (len(ids) - 1) // length)
    window_BS = ids.unfold(0, length + 1, 1)[:: (len(ids) - 1) // rows][:rows]
    window_BS = window_BS.long()
    return window_BS[:, :-1].contiguous(), window_BS[:, 1:].contiguous()
