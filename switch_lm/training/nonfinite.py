"""Where a NaN or an infinity arose: the name of the first weight, output or gradient that has one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

NEVER = 2**62  # later than any step


class NonFiniteError(Exception):
    """A number became NaN or infinite in training; the message says where and at which step."""


class BadSteps:
    """The first steps with a number that is not finite, noted on its device: nothing waits for it before `first`."""

    def __init__(self) -> None:
        self._steps: dict[str, Tensor] = {}

    def add(self, what: str, number: Tensor, step: int) -> None:
        bad = torch.where(torch.isfinite(number.detach()), NEVER, step)
        self._steps[what] = torch.minimum(self._steps[what], bad) if what in self._steps else bad

    def first(self) -> tuple[str, int] | None:
        """Which number was bad first, and at which step; None if all were finite."""
        steps = {what: int(step) for what, step in self._steps.items()}
        what = min(steps, key=lambda what: steps[what], default="")
        return (what, steps[what]) if steps.get(what, NEVER) < NEVER else None


def first_of(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The first tensor that is not finite, and how: "w_router_DE (nan)"."""
    tensors = [(name, tensor) for name, tensor in named if tensor is not None]
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in tensors]).tolist() if tensors else []
    for (name, tensor), is_finite in zip(tensors, finite, strict=True):
        if not is_finite:
            return f"{name} ({'nan' if torch.isnan(tensor).any() else 'inf'})"
    return None


def locate(model: nn.Module, loss: Callable[[], Tensor]) -> str:
    """The first weight that is not finite, or else the first module in the computation of `loss` whose output is not.

    `loss` is computed again with `model`, without the compiler. The caller resets the random state first.
    """
    if (weight := first_of(model.named_parameters())) is not None:
        return f"the weight {weight}"
    names, places = {module: name for name, module in model.named_modules()}, list[str]()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names.get(module)
        if name and (bad := first_of(_tensors(name, output))) is not None:
            places.append(f"the output of {bad}")

    with register_module_forward_hook(look), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        again = loss()
    if not places and torch.isfinite(again):
        return "compiled code or its noise: the same step without the compiler is finite"
    return places[0] if places else "the loss itself: every layer's output is finite"


def _tensors(name: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a module returns, also in tuples and dataclasses."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, tuple):
        for part in output:
            yield from _tensors(name, part)
    elif is_dataclass(output):
        for field in fields(output):
            yield from _tensors(f"{name}: {field.name}", getattr(output, field.name))
