"""Batches: which characters the model sees at which step."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from switch_lm.text.windows import EvaluationBatches


class Batch(NamedTuple):
    """Characters (B, S) and those that follow them (B, S)."""

    ids: Tensor
    targets: Tensor


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, by splitmix64, so that neighbouring steps share nothing."""
    mask, state = 2**64 - 1, 0
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


class TrainingBatches(Dataset[Batch]):
    """Batch number n, or the part of it that process number `rank` takes, as a pure function of (seed, n).

    A restart cannot change the order, and neither can the number of processes: of the B rows of a batch, process r of R
    takes r B / R to (r + 1) B / R.

    Each pass cuts the text at a new random offset into windows and takes them in a new random order, so that every
    character is met about equally often. `ids` (N,); items are `Batch`es of (B / R, context_length).
    """

    def __init__(
        self, ids: Tensor, *, batch_size: int, context_length: int, seed: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.ids, self.batch_size, self.context_length = ids, batch_size, context_length
        self.seed, self.rank, self.num_ranks = seed, rank, num_ranks
        # An offset below context_length and one character to predict after the last window always fit.
        self.windows_per_pass = (len(ids) - context_length) // context_length
        self._passes: dict[int, tuple[int, Tensor]] = {}

    def __getitem__(self, number: int) -> Batch:
        rows = self.batch_size // self.num_ranks
        first = number * self.batch_size + self.rank * rows
        starts = torch.tensor([self._start(first + row) for row in range(rows)])
        windows = self.ids[starts[:, None] + torch.arange(self.context_length + 1)].long()
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())

    def _start(self, window: int) -> int:
        number_of_pass, place = divmod(window, self.windows_per_pass)
        offset, order = self._pass(number_of_pass)
        return offset + self.context_length * int(order[place])

    def _pass(self, number: int) -> tuple[int, Tensor]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
            offset = int(torch.randint(self.context_length, (), generator=generator))
            order = torch.randperm(self.windows_per_pass, generator=generator)
            self._passes = {number: (offset, order)}  # one is enough: passes follow each other
        return self._passes[number]


class Numbers(Sampler[int]):
    """The numbers of the batches to come, asked for at the start of each pass."""

    def __init__(self, numbers: Callable[[], Iterable[int]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers())


class ValidationBatches(Dataset[Batch]):
    """The whole validation split in order; past its end, batches without a row."""

    def __init__(self, batches: EvaluationBatches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self.batches):
            return Batch(*(part[:0] for part in self.batches[0]))
        return Batch(*self.batches[number])


class TextData(lightning.LightningDataModule):
    """Training batches from the step the trainer stands at, and validation batches from where a validation stands."""

    def __init__(
        self,
        training_ids: Tensor,
        validation_ids: Tensor,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.training_ids, self.validation_ids = training_ids, validation_ids
        self.batch_size, self.context_length, self.seed = batch_size, context_length, seed
        self.validation_batches = EvaluationBatches(
            validation_ids, context_length=context_length, batch_size=batch_size
        )

    def _training_batches(self) -> TrainingBatches:
        assert self.trainer is not None
        return TrainingBatches(
            self.training_ids,
            batch_size=self.batch_size,
            context_length=self.context_length,
            seed=self.seed,
            rank=self.trainer.global_rank,
            num_ranks=self.trainer.world_size,
        )

    def of_step(self, step: int) -> Iterator[Batch]:
        """This process's part of the micro-batches that follow so many steps."""
        assert self.trainer is not None
        batches, number = self._training_batches(), self.trainer.accumulate_grad_batches
        return (batches[step * number + i] for i in range(number))

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        first, batches = self.trainer.global_step * self.trainer.accumulate_grad_batches, self._training_batches()
        return self._loader(batches, lambda: itertools.count(first))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Without those that the module's tally has seen before a stop. The processes take turns, all equally often."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        batches, rank, size = self.validation_batches, self.trainer.global_rank, self.trainer.world_size

        def numbers() -> Iterator[int]:
            return (first + rank for first in range(module.validation.num_batches, len(batches), size))

        return self._loader(ValidationBatches(batches), numbers)

    def _loader(self, batches: Dataset[Batch], numbers: Callable[[], Iterable[int]]) -> DataLoader[Batch]:
        """Lightning draws one batch ahead; from pinned memory a GPU fetches it while it computes."""
        assert self.trainer is not None
        pinned = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(batches, batch_size=None, sampler=Numbers(numbers), pin_memory=pinned)
