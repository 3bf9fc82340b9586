"""The text that every statistic reads, what a model does with each character, and what it would do if changed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from switch_lm.measure.metrics import FirstChoice, first_choice
from switch_lm.measure.scoring import negative_log_likelihood
from switch_lm.model.attention import LayerCache
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM, evaluating
from switch_lm.probe.subject import used
from switch_lm.text.windows import EvaluationBatches, fixed_windows

WINDOWS = 128
ROWS = 32  # windows in a pass; nothing that is read without a capacity depends on it


@dataclass(frozen=True)
class Probe:
    """Windows spread evenly over the validation split: the same for every model of the same context length."""

    ids_BS: Tensor
    target_BS: Tensor
    split_ids: Tensor  # (N,): what stands before a window says where in a line it begins

    @classmethod
    def of(cls, validation_ids: Tensor, *, context_length: int, num_windows: int = WINDOWS) -> Self:
        """`context_length`: the model's, or the shorter one of two models that are compared."""
        windows = fixed_windows(validation_ids, context_length=context_length, num_windows=num_windows)
        return cls(*windows, validation_ids)

    @property
    def place_BS(self) -> Tensor:
        """Where in the split each character of the windows stands."""
        (B, S), device = self.ids_BS.shape, self.ids_BS.device
        stride = (len(self.split_ids) - 1) // B
        return stride * torch.arange(B, device=device)[:, None] + torch.arange(S, device=device)

    def smaller(self, num_windows: int) -> Self:
        """At most `num_windows` windows of the same split, for what is expensive."""
        B, S = self.ids_BS.shape
        return self.of(self.split_ids, context_length=S, num_windows=min(B, num_windows))

    def batches(self, rows: int = ROWS) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, `rows` windows at a time."""
        yield from zip(self.ids_BS.split(rows), self.target_BS.split(rows), strict=True)


@dataclass(frozen=True)
class Reading:
    """What each Switch layer did with each character (L, B, S) with nothing dropped, and the loss of the model.

    Of several experts of a token the one with the largest gate stands for all.
    """

    expert_LBS: Tensor  # num_experts, one past the last, where a token has none
    gate_LBS: Tensor  # what its output was multiplied by
    second_LBS: Tensor  # the most probable other expert; NOBODY if there is no other
    second_probability_LBS: Tensor
    number_LBS: Tensor  # how many experts it has
    nll_BS: Tensor  # nats of the character that followed
    num_experts: int
    blocks: Sequence[int]  # whose Switch layers these are: the names of the layers


def switch_layers(model: SwitchLM) -> list[SwitchFeedForward]:
    """In order of depth; a ValueError for a dense model."""
    if not (layers := model.switch_layers):
        raise ValueError("a dense model routes nothing: there is no router or expert to inspect; give a Switch model")
    return layers


def read(model: SwitchLM, probe: Probe) -> Reading:
    """Reads the probe without a capacity, so that no window depends on another."""
    return _read(model, probe.batches(), shape=tuple(probe.ids_BS.shape))


def read_text(model: SwitchLM, ids: Tensor, *, context_length: int) -> Reading:
    """Reads a text (N,), window by window, as one row (L, 1, N - 1) without the last character."""
    batches = EvaluationBatches(ids, context_length=context_length, batch_size=ROWS)
    return _read(model, batches, shape=(1, len(ids) - 1))


def _read(model: SwitchLM, batches: Iterable[tuple[Tensor, Tensor]], *, shape: tuple[int, ...]) -> Reading:
    layers, done = switch_layers(model), 0
    new = partial(torch.empty, len(layers), math.prod(shape), device=model.embedding.weight.device)
    # Made before the first pass: small results between the large logits of two passes would keep the memory of both.
    new_long = partial(new, dtype=torch.long)
    facts = FirstChoice(new_long(), new(), new_long(), new(), new_long())
    nll_T = torch.empty_like(facts.gate_T[0])
    with torch.inference_mode(), evaluating(model):
        for ids_BS, target_BS in batches:
            output, here = model(ids_BS, capacity_factor=None), slice(done, done + ids_BS.numel())
            nll_T[here], done = negative_log_likelihood(output.logits, target_BS).flatten(), here.stop
            for layer, routing in enumerate(output.routings):
                for fact_LT, fact_T in zip(facts, first_choice(routing), strict=True):
                    fact_LT[layer, here] = fact_T
            del output  # before the next pass
    expert, gate, second, second_probability, number = (fact_LT.view(len(layers), *shape) for fact_LT in facts)
    num_experts, blocks = layers[0].num_experts, model.config.switch_blocks
    return Reading(expert, gate, second, second_probability, number, nll_T.view(shape), num_experts, blocks)


def assignments(model: SwitchLM, probe: Probe) -> list[list[tuple[int, int, float]]]:
    """All assignments of each Switch layer with nothing dropped: character (row x S + position), expert and gate.

    In the order of the characters; of the experts of a character the one with the largest gate comes first.
    """
    layers: list[list[tuple[int, int, float]]] = [[] for _ in switch_layers(model)]
    with torch.inference_mode(), evaluating(model):
        for number, (ids_BS, _) in enumerate(probe.batches()):
            for of_layer, routing in zip(layers, model(ids_BS, capacity_factor=None).routings, strict=True):
                place_N = routing.token_N + number * ROWS * ids_BS.shape[1]
                facts = (fact_N[used(routing)].tolist() for fact_N in (place_N, routing.expert_N, routing.gate_N))
                of_layer += zip(*facts, strict=True)
    return [sorted(of_layer, key=lambda one: (one[0], -one[2])) for of_layer in layers]


def rewind(cache: list[LayerCache], length: int) -> None:
    """Forgets what was read after the first `length` positions; the next character is written over it."""
    for layer in cache:
        layer.length = length


def recorded(model: SwitchLM, probe: Probe, *, rows: int = ROWS) -> Callable[[int], Tensor]:
    """Reads the probe once, with nothing dropped, and keeps what reached each block. The model must be in `eval()`.

    The result takes the index of a Switch layer among all and gives the nats (B, S) of each target, with the blocks
    from that layer on as they are then: a change of one layer needs no others.
    """
    numbers = model.config.switch_blocks
    reached: list[Tensor] = []  # (B, S, D) of each batch, and within it of each Switch layer
    with torch.inference_mode(), ExitStack() as hooks:
        for number in numbers:
            hook = model.blocks[number].register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
            hooks.enter_context(hook)
        for ids_BS, _ in probe.batches(rows):
            model(ids_BS, capacity_factor=None)

    @torch.inference_mode()
    def nll(layer: int) -> Tensor:
        logits = []
        for x_BSD, (ids_BS, _) in zip(reached[layer :: len(numbers)], probe.batches(rows), strict=True):
            length, rotary = x_BSD.shape[1], model.config.position == "rotary"
            rotation = (model.cos_SW[:length], model.sin_SW[:length]) if rotary else None
            where = {"ids_BS": ids_BS, "position_S": torch.arange(length, device=ids_BS.device), "rotation": rotation}
            for block in model.blocks[numbers[layer] :]:
                x_BSD, _ = block(x_BSD, **where, capacity_factor=None)
            logits.append(model.head(model.norm(x_BSD)))
        return negative_log_likelihood(torch.cat(logits), probe.target_BS)

    return nll
