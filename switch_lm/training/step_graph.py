"""The forward and backward pass of a micro-batch as a CUDA graph: recorded once, then launched as a whole."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.base import Router
from switch_lm.routers.noise import Dropout
from switch_lm.training.callbacks.base import MicroBatch
from switch_lm.training.data import Batch

WARM_UPS = 3  # passes before a recording, in which libraries choose their kernels
RECORDINGS = 4  # at most: a router that changes more often is launched kernel by kernel


class CannotRecordError(Exception):
    """The pass cannot be recorded; the message says why."""


class StepGraph:
    """Replays `passes`, which runs the forward and backward pass of a batch and returns what `training_step` does.

    Small kernels take less time than their launches, and a replay has one. What is returned, and the gradients, are
    the same tensors in every replay, and are overwritten by the next. A recording holds the numbers that Python had:
    it must be made again if those of a router, a Switch layer or a dropout change.
    """

    def __init__(self, passes: Callable[[Batch], MicroBatch], model: nn.Module, *, accumulates: bool) -> None:
        self.passes, self.accumulates = passes, accumulates
        self.parameters = list(model.parameters())
        routers = [module for module in model.modules() if isinstance(module, Router)]
        # A router may look at routings after the next replay, and a step adds up those of its micro-batches.
        self.copies = accumulates or any(type(router).after_step is not Router.after_step for router in routers)
        self.watched = [part for part in model.modules() if isinstance(part, Router | SwitchFeedForward | Dropout)]
        self.recordings, self._held = 0, ()
        self._graphs: list[tuple[torch.cuda.CUDAGraph, MicroBatch]] = []  # of a step's first micro-batch, of the others
        self._grads: list[tuple[nn.Parameter, Tensor]] = []
        self._batch: Batch | None = None

    def is_current(self) -> bool:
        """Whether the recording is what the model would do now."""
        return bool(self._graphs) and self._held == _held(self.watched)

    def record(self, batch: Batch) -> None:
        """Records for batches of this shape; changes no weight, and draws random numbers. CannotRecordError."""
        if self.recordings == RECORDINGS:
            raise CannotRecordError(f"numbers of its routers or layers changed {RECORDINGS} times")
        self.recordings += 1
        self._graphs, self._grads, self._held = [], [], _held(self.watched)
        self._batch = Batch(*(part.clone() for part in batch))
        try:
            self._warm_up(self._batch)
            self._capture(self._batch)
        except RuntimeError as error:  # of torch, in Python and in its libraries; they share no other class
            self._graphs = []
            raise CannotRecordError(" ".join(str(error).split())[:200]) from error
        finally:
            self._forget()

    def _warm_up(self, batch: Batch) -> None:
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for number in range(WARM_UPS):
                self._forget()
                if number < WARM_UPS - 1:
                    self.passes(batch)
                else:
                    with refusing_to_wait():  # a recording that fails leaves the GPU's context in an odd state
                        self.passes(batch)
        here.wait_stream(side)

    def _capture(self, batch: Batch) -> None:
        self._forget()
        pool = torch.cuda.graph_pool_handle()
        for _ in range(1 + self.accumulates):  # the first makes the gradients, the second adds to them
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = self.passes(batch)
            self._graphs.append((graph, outputs))
        self._grads = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def replay(self, batch: Batch, *, first: bool) -> MicroBatch:
        """The pass over another batch. `first`: of its step; the gradients of the others are added."""
        assert self._batch is not None
        for recorded, part in zip(self._batch, batch, strict=True):
            recorded.copy_(part, non_blocking=True)
        graph, outputs = self._graphs[0 if first else 1]
        graph.replay()
        for parameter, grad in self._grads:
            parameter.grad = grad
        if self.copies:
            return outputs | {"routings": tuple(routing.copied() for routing in outputs["routings"])}
        return outputs


def _held(parts: Sequence[nn.Module]) -> tuple[Any, ...]:
    """What a recording takes from them as it is: plain numbers and words, options, and where their tensors lie."""
    held: list[Any] = []
    for part in parts:
        held += [(name, value) for name, value in vars(part).items() if isinstance(value, int | float | str | None)]
        held += [getattr(part, "options", None), *(tensor.data_ptr() for tensor in part.buffers(recurse=False))]
    return tuple(held)


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """RuntimeError where the host would wait for the GPU, as to read a number from it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not find every wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
