"""Sums over many batches: of a training step, of the drops in training, of a validation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from switch_lm.measure.metrics import SMALLEST, RoutingSums, dropped_choices, num_choices, router_entropy
from switch_lm.model import devices
from switch_lm.routers.routing import Routing


class StepTally:
    """The micro-batches of one optimizer step. Nothing is copied to the host before a figure is read."""

    def __init__(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self.layers: list[RoutingSums] = []  # one per Switch layer

    @torch.no_grad()
    def add(self, losses: dict[str, Tensor], routings: Sequence[Routing], sums: Sequence[RoutingSums] = ()) -> None:
        """Adds one micro-batch; `losses` by tag. `sums`: those of all processes, in place of `routings`."""
        self._losses.append({tag: loss.detach() for tag, loss in losses.items()})
        sums = list(sums) or [RoutingSums.of(routing) for routing in routings]
        self.layers = [a + b for a, b in zip(self.layers, sums, strict=True)] if self.layers else sums

    @property
    def losses(self) -> dict[str, float]:
        """The mean over micro-batches by tag, which is what the step minimises: their gradients are averaged."""
        return {tag: torch.stack([losses[tag] for losses in self._losses]).mean().item() for tag in self._losses[0]}


class DropTally:
    """Choices dropped in training by each of L Switch layers: in the whole run, and between two validations.

    Nothing is copied to the host before a figure is read.
    """

    def __init__(self, num_layers: int) -> None:
        self._dropped_L = torch.zeros(num_layers, dtype=torch.long)
        self._choices_L: list[int | Tensor] = [0] * num_layers  # tensors where tokens have any number of experts
        self._tokens = 0  # in one layer
        self._stretch_began = [0.0, 0]  # at the last validation: drops and choices in all layers
        self.last_stretch = 0.0  # the share dropped between the last two validations

    def add(self, routings: Sequence[Routing], sums: Sequence[RoutingSums] = ()) -> None:
        """Of one micro-batch. `sums`: those of all processes, in place of `routings`."""
        if routings:
            dropped = [one.dropped_E.sum() for one in sums] or [dropped_choices(routing) for routing in routings]
            choices = [one.choices for one in sums] or [num_choices(routing) for routing in routings]
            dropped_L = torch.stack(dropped)
            self._dropped_L = self._dropped_L.to(dropped_L.device) + dropped_L
            self._choices_L = [sum_ + number for sum_, number in zip(self._choices_L, choices, strict=True)]
            self._tokens += sums[0].tokens if sums else routings[0].num_tokens

    def end_stretch(self) -> None:
        """Call at each validation. Without a step since the last one, the share does not change."""
        dropped, choices = float(self._dropped_L.sum()), sum(map(int, self._choices_L))
        dropped_before, choices_before = self._stretch_began
        if choices > choices_before:
            self.last_stretch = (dropped - dropped_before) / (choices - choices_before)
        self._stretch_began = [dropped, choices]

    @property
    def whole_run_L(self) -> list[float]:
        """The share of choices that each layer dropped; 0 before the first step."""
        dropped_L, choices_L = self._dropped_L.tolist(), map(int, self._choices_L)
        return [dropped / max(1, choices) for dropped, choices in zip(dropped_L, choices_L, strict=True)]

    @property
    def selected_L(self) -> list[float]:
        """The experts that a token selected in each layer, on average; 0 before the first step."""
        return [int(choices) / max(1, self._tokens) for choices in self._choices_L]

    @property
    def kept_L(self) -> list[float]:
        """The experts that computed a token in each layer, on average."""
        pairs = zip(self.selected_L, self.whole_run_L, strict=True)
        return [selected * (1.0 - dropped) for selected, dropped in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {
            "dropped_L": self._dropped_L.tolist(),
            "choices_L": list(map(int, self._choices_L)),
            "tokens": self._tokens,
            "stretch_began": self._stretch_began,
            "last_stretch": self.last_stretch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._dropped_L = torch.tensor(state["dropped_L"], dtype=torch.long)
        self._choices_L, self._tokens = list(state["choices_L"]), state["tokens"]
        self._stretch_began, self.last_stretch = state["stretch_began"], state["last_stretch"]


class ValidationTally:
    """Language loss, load and router entropy over a whole split, from batches that may differ in size."""

    def __init__(self) -> None:
        self._nll, self._count, self.num_batches = 0.0, 0, 0
        self.load_LE: Tensor | None = None  # choices that selected each expert; None for a dense model
        self._entropy_L: Tensor | None = None  # summed over characters

    def add(self, loss: Tensor, count: int, routings: Sequence[Routing]) -> None:
        """Adds one batch; `loss` is the mean over its `count` predictions."""
        one = ValidationTally()
        one._nll, one._count, one.num_batches = loss.item() * count, count, 1
        if routings:
            one.load_LE = torch.stack([routing.load_E for routing in routings])
            one._entropy_L = devices.widened(torch.stack([router_entropy(routing) for routing in routings])) * count
        self.join(one)

    def join(self, other: "ValidationTally") -> None:
        """Adds the batches of another one, after its own."""
        self._nll, self._count = self._nll + other._nll, self._count + other._count
        self.num_batches += other.num_batches
        if other.load_LE is not None and other._entropy_L is not None:
            load_LE, entropy_L = other.load_LE, other._entropy_L
            self.load_LE = load_LE if self.load_LE is None else self.load_LE.to(load_LE.device) + load_LE
            self._entropy_L = entropy_L if self._entropy_L is None else self._entropy_L.to(entropy_L) + entropy_L

    def state_dict(self) -> dict[str, Any]:
        """For a run that is stopped in a validation, or after its last one with only its result to write."""
        parts = {"load_LE": self.load_LE, "entropy_L": self._entropy_L}
        sums = {"nll": self._nll, "count": self._count, "num_batches": self.num_batches}
        return sums | {k: x if x is None else x.tolist() for k, x in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._nll, self._count, self.num_batches = state["nll"], state["count"], state["num_batches"]
        self.load_LE = None if state["load_LE"] is None else torch.tensor(state["load_LE"])
        self._entropy_L = None if state["entropy_L"] is None else torch.tensor(state["entropy_L"], dtype=torch.float64)

    @property
    def loss(self) -> float:
        """Nats per character."""
        return self._nll / self._count

    @property
    def load_max_over_mean(self) -> float | None:
        """The largest load of an expert over the mean load, in the worst layer; None for a dense model.

        0 where no expert takes a token.
        """
        if self.load_LE is None:
            return None
        load_LE = self.load_LE.float()
        return float((load_LE.amax(1) / load_LE.mean(1).clamp(min=SMALLEST)).max())

    @property
    def router_entropy(self) -> float | None:
        """The mean over characters and layers in nats; None for a dense model."""
        return None if self._entropy_L is None else float(self._entropy_L.mean()) / self._count
