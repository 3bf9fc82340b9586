"""What a run asks of the processes that it trains in: sums over all of them, their routings, and whether to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from switch_lm.measure.metrics import RoutingSums
from switch_lm.measure.tallies import ValidationTally
from switch_lm.routers.base import Router
from switch_lm.routers.routing import LISTS, Routing


class Group:
    """`size` processes, each with as many rows of a batch; this one is number `rank`. With one, nothing is sent.

    All processes make the same calls in the same order. What is summed is sent in float64, which is exact for counts.
    """

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.asks: Callable[[], int] = lambda: 0  # why this process would stop: a number above 0; 0: it would not
        self.check: Callable[[], None] = lambda: None  # raises if another process was lost
        self.begin: Callable[[], None] = lambda: None  # waits until all processes stand before the first step
        self._agreed = 0

    @property
    def stops(self) -> int:
        """Why all processes stop here, as `asks` says it; 0: they go on. The same in each, as of the last exchange."""
        return self.asks() if self.size == 1 else self._agreed

    def leave(self) -> None:
        """From now on each process is alone: the others have nothing left to do."""
        self.size, self.check = 1, lambda: None

    def sums_of(self, routings: Sequence[Routing]) -> tuple[RoutingSums, ...]:
        """Those of a micro-batch over all processes, one per Switch layer, in one exchange; none with one process.

        The exchange also says which process asks to stop, in a dense model too.
        """
        if self.size == 1:
            return ()
        with torch.no_grad():
            values: list[list[Any]] = [[*vars(RoutingSums.of(routing)).values()] for routing in routings]
        parts: Iterator[Any] = iter(self._exchanged([x for layer in values for x in layer if isinstance(x, Tensor)]))
        return tuple(  # numbers follow from the shapes, which are the same in all processes
            RoutingSums(*(next(parts) if isinstance(x, Tensor) else self.size * x for x in layer)) for layer in values
        )

    def tally_of(self, tally: ValidationTally, *, shape_LE: tuple[int, int]) -> ValidationTally:
        """The sums of all processes' batches. One that has no batch gives an empty tally."""
        if self.size == 1:
            return tally
        sums, num_layers = tally.state_dict(), shape_LE[0]
        load_LE, entropy_L = (
            torch.zeros(shape).double() if sums[name] is None else torch.tensor(sums[name], dtype=torch.float64)
            for name, shape in (("load_LE", shape_LE), ("entropy_L", num_layers))
        )
        counts = torch.tensor([sums["nll"], sums["count"], sums["num_batches"]], dtype=torch.float64)
        (nll, count, num_batches), load_LE, entropy_L = self._exchanged([counts, load_LE, entropy_L])
        total, sparse = ValidationTally(), num_layers > 0
        total.load_state_dict(
            {"nll": nll.item(), "count": int(count), "num_batches": int(num_batches)}
            | {
                "load_LE": load_LE.long().tolist() if sparse else None,
                "entropy_L": entropy_L.tolist() if sparse else None,
            }
        )
        return total

    def _exchanged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Their sums over all processes, in their types; and what each process asks."""
        asked_R = torch.zeros(self.size, dtype=torch.float64)
        asked_R[self.rank] = self.asks()
        total, *sums = self._summed([asked_R, *tensors])
        self._agreed = next((int(asked) for asked in total.tolist() if asked), 0)
        return sums

    def _summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """In one message."""
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        packed = torch.cat([tensor.detach().to(device, torch.float64).flatten() for tensor in tensors])
        dist.all_reduce(packed)
        sizes = [tensor.numel() for tensor in tensors]
        return [part.view_as(like).to(like) for part, like in zip(packed.split(sizes), tensors, strict=True)]

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each loss over the processes, 0-d."""
        if self.size == 1:
            return losses
        return dict(zip(losses, [total / self.size for total in self._summed(list(losses.values()))], strict=True))

    def sum_of(self, x: Tensor) -> Tensor:
        """Over the processes."""
        return x if self.size == 1 else self._summed([x])[0]

    def sum_with_gradient(self, x: Tensor) -> Tensor:
        """The sum over the processes, in a loss that is the same in each of them.

        Its gradient in each process counts `size` times, since the gradients of the processes are averaged.
        """
        if self.size == 1:
            return x
        return self.sum_of(x) + self.size * (x - x.detach())

    def for_after_step(self, router: Router, routings: Sequence[Routing]) -> Sequence[Routing]:
        """What the router is to learn from: the routings of all processes, if it looks at more than loads.

        Their loads are those of all processes already.
        """
        looks_closer = type(router).after_step is not Router.after_step or router.balance.name == "quantile"
        if self.size == 1 or not looks_closer:
            return routings
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, list(routings))
        return [joined(parts) for parts in zip(*gathered, strict=True)]


ALONE = Group()


def joined(parts: Sequence[Routing]) -> Routing:
    """The routing of one process that has the tokens of all parts, those of each part as groups of their own.

    `load_E` is that of the first part: it counts the choices of all already.
    """
    first, values = parts[0], dict[str, Any]()
    for name in (field.name for field in fields(Routing)):
        if name in LISTS or name.endswith("_TE") or name == "used_N":
            of_parts = [getattr(part, name) for part in parts]
            values[name] = None if of_parts[0] is None else torch.cat(of_parts)
    offset_N = torch.arange(len(parts), device=first.token_N.device).repeat_interleave(first.token_N.numel())
    values["token_N"] = values["token_N"] + offset_N * first.num_tokens
    num_groups = first.num_groups if first.capacity is None else len(parts) * first.num_groups
    return replace(first, **values, num_groups=num_groups)
