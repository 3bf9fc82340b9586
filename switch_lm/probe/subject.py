"""A model and a text to check, and how its layers are watched. Whatever would change the model runs on a copy."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM, SwitchOutput
from switch_lm.routers.base import Promise, Router
from switch_lm.routers.noise import Dropout, seed_noise
from switch_lm.routers.routing import Routing
from switch_lm.stats.clusters import LEAST
from switch_lm.text.windows import fixed_windows

ROWS = 4  # windows in a batch that is only compared with another: few, so that each takes much of the common capacity
SCORED = 64  # windows, at least, for a difference between losses
# Capacity factors below that of training: one at which some experts overflow while others have slots left (which
# rerouting needs), and one that drops many tokens whatever the router does.
TIGHT = (1.0, 0.5)
Windows = tuple[Tensor, Tensor]


def tried(factor: float | None) -> list[float | None]:
    """A capacity factor, and tighter ones, at which a rule shows what it does."""
    return [factor] if factor is None else [factor, *(tight for tight in TIGHT if tight < factor)]


@dataclass(frozen=True)
class Subject:
    """A model in `eval()`, and how it was trained. The model itself never changes: interventions run on copies."""

    model: SwitchLM
    validation_ids: Tensor
    batch_size: int
    alpha: float

    def windows(self, num_windows: int) -> Windows:
        """Inputs and targets (B, S), spread evenly over the validation split."""
        context_length = self.model.config.context_length
        return fixed_windows(self.validation_ids, context_length=context_length, num_windows=num_windows)

    @cached_property
    def few(self) -> Windows:
        return self.windows(ROWS)

    @cached_property
    def scored(self) -> Windows:
        """Windows for a difference of losses: 8 whole batches of training, or as many as the text has."""
        num_batches = max(-(-SCORED // self.batch_size), LEAST)
        inputs_BS, targets_BS = self.windows(num_batches * self.batch_size)
        num_windows = len(inputs_BS)
        kept = num_windows - num_windows % self.batch_size or num_windows
        return (inputs_BS, targets_BS) if kept == num_windows else self.windows(kept)

    def unit(self, promise: Promise) -> int:
        """How many consecutive windows of `scored` are one independent unit: a batch, if its rows share places."""
        return self.batch_size if promise.depends_on_rows else 1

    def limit(self, capacity_factor: float | None, *, training: bool) -> float | None:
        """The factor that really limits the experts when this one is configured; None: no limit.

        A dense model has no experts, and a router may give no slots by it.
        """
        routes = self.model.config.num_switch_layers > 0
        return self.model.router_options.limit(capacity_factor, training=training) if routes else None

    def promise(self, *, training: bool, limited: bool) -> Promise:
        """What its routers, which are all alike, promise; of a dense model that nothing leaks."""
        return promised(self.model, training=training, limited=limited)

    def without_noise(self, *, jitter: bool = False) -> SwitchLM:
        """A copy that runs as in training, without dropout, random drops and, unless `jitter`, jitter."""
        model = deepcopy(self.model).train()
        for module in model.modules():
            if isinstance(module, Dropout):
                module.rate = 0.0
            elif isinstance(module, Router):
                kept = module.options.jitter if jitter else 0.0
                module.options = replace(module.options, random_drop_rate=0.0, jitter=kept)
        return model


def promised(model: SwitchLM, *, training: bool, limited: bool) -> Promise:
    """What the routers of a model promise in training or evaluation, with or without a capacity."""
    return model.routers[0].promise(training=training, limited=limited) if model.routers else Promise()


@dataclass(frozen=True)
class LayerCall:
    """A Switch layer, what went into it, the capacity that it gave its router, and what it returned."""

    layer: SwitchFeedForward
    x_BSD: Tensor
    ids_BS: Tensor | None
    position_S: Tensor | None
    capacity: int | None
    y_BSD: Tensor
    routing: Routing

    def every_output_ETD(self, some: Sequence[int] | None = None) -> Tensor:
        """What every expert, or each of `some`, gives for every token, wherever the router sends it; without gates."""
        x_TD, experts = self.x_BSD.flatten(0, 1), self.layer.experts
        if some is None or len(some) == self.layer.num_experts:
            return experts.padded(x_TD.expand(self.layer.num_experts, *x_TD.shape))
        w_in_EDF, w_out_EFD = experts.w_in_EDF[list(some)], experts.w_out_EFD[list(some)]
        return experts.dropout(experts.activation(x_TD @ w_in_EDF)) @ w_out_EFD


@contextmanager
def calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Collects the calls of every Switch layer in a model, or of a layer itself, in order of depth."""
    seen: list[LayerCall] = []
    capacities: list[int | None] = []

    def keep_capacity(router: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        capacities.append(options["capacity"])

    def keep(layer: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: tuple[Tensor, Routing]) -> None:
        read = options.get("ids_BS"), options.get("position_S")
        seen.append(LayerCall(layer, inputs[0], *read, capacities.pop(), *output))

    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, SwitchFeedForward):
                hooks.enter_context(layer.router.register_forward_pre_hook(keep_capacity, with_kwargs=True))
                hooks.enter_context(layer.register_forward_hook(keep, with_kwargs=True))
        yield seen


def used(routing: Routing) -> Tensor:
    """Which entries of the list are assignments (N), bool."""
    return torch.ones_like(routing.kept_N) if routing.used_N is None else routing.used_N


def without_slot(routing: Routing) -> Tensor:
    """Which assignments (N) the selected expert did not compute: dropped, or rerouted to another one; bool."""
    return used(routing) & ~(routing.kept_N & (routing.assigned_N == routing.expert_N))


def largest(moves: list[Tensor]) -> float:
    """The largest absolute value in several tensors: NaN if one contains a NaN, 0 if there are none."""
    return torch.stack([move.abs().max() for move in moves]).max().item() if moves else 0.0


def share(moves: list[Tensor], logits: list[Tensor]) -> float:
    """The largest move as a share of the largest logit, whose rounding grows with it; NaN if one contains a NaN."""
    return largest(moves) / max(largest(logits), 1e-20)


@contextmanager
def noise(seed: int, device: torch.device) -> Iterator[None]:
    """Noise that depends only on the seed; the global random state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_noise(seed, device)
        yield


def seeded(
    model: SwitchLM, ids_BS: Tensor, *, seed: int, capacity_factor: float | EllipsisType | None = ...
) -> SwitchOutput:
    """A pass in the model's mode, with the same noise for every text of equal shape."""
    with noise(seed, ids_BS.device), torch.inference_mode():
        output: SwitchOutput = model(ids_BS, capacity_factor=capacity_factor)
        return output
