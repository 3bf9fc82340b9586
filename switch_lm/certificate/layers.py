"""Every Switch layer alone, on the input that it has in the model: in training at several capacities, in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.leaks import named
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, noise, seeded
from switch_lm.routers.routing import Routing

SMALLEST = 1e-20  # a straight-through gate divides by no smaller p
Factor = float | EllipsisType | None  # ...: as the layer has it


@dataclass(frozen=True)
class LayerRun:
    """The calls of all layers under one condition, and what repeats them."""

    name: str
    factor: Factor
    configured: float | None  # the capacity factor that should hold
    calls: list[LayerCall]


def run(layer: SwitchFeedForward, x_BSD: Tensor, factor: Factor) -> tuple[Tensor, Routing]:
    """With the same noise each time, so that a random order is the same order; what it may do to its input is lost."""
    with noise(0, x_BSD.device), torch.inference_mode():
        found: tuple[Tensor, Routing] = layer(x_BSD.clone(), capacity_factor=factor)
        return found


def layer_runs(subject: Subject) -> Iterator[LayerRun]:
    """In training but for dropout and random drops; as validation routes; and one character, as generation does."""
    training, evaluated = subject.without_noise(jitter=True), deepcopy(subject.model)
    ids_BS, config = subject.few[0], subject.model.config
    for factor in subject.factors:
        yield LayerRun(named(factor), factor, factor, _calls(training, ids_BS, factor))
    yield LayerRun("as trained", ..., config.capacity_factor, _calls(training, ids_BS, ...))
    yield LayerRun("evaluation", ..., config.eval_capacity_factor, _calls(evaluated, ids_BS, ...))
    yield LayerRun("one character", None, None, _calls(evaluated, ids_BS[:1, :1], None))


def _calls(model: SwitchLM, ids_BS: Tensor, factor: Factor) -> list[LayerCall]:
    with calls(model) as seen:
        seeded(model, ids_BS, seed=0, capacity_factor=factor)
    return [LayerCall(c.layer, c.x_BSD, *run(c.layer, c.x_BSD, factor)) for c in seen]


def gates_of(layer: SwitchFeedForward, prob_TE: Tensor, assigned_TK: Tensor) -> Tensor:
    """The gates (T, K) that the rule makes of the probability among all experts (eq. 1 and 2)."""
    prob_TK = prob_TE.gather(1, assigned_TK)
    if layer.rule.renormalize_gates:
        return prob_TK / prob_TK.sum(dim=-1, keepdim=True)
    if layer.rule.gate_scale == "straight_through":  # p / p.detach(): 1 even where p underflows to 0
        fixed_TK = prob_TK.detach()
        return 1.0 + (prob_TK - fixed_TK) / fixed_TK.clamp(min=SMALLEST)
    return prob_TK


def by_a_loop(layer: SwitchFeedForward, x_TD: Tensor, routing: Routing, gate_TK: Tensor) -> Tensor:
    """What the layer should give (T, D), expert by expert over all tokens; with a gradient where inputs have one."""
    y_TD = torch.zeros_like(x_TD) if layer.shared is None else layer.shared(x_TD)
    for expert in range(layer.num_experts):
        mine_TK = (routing.assigned_TK == expert) & routing.kept_TK
        h_TF = layer.experts.activation(x_TD @ layer.experts.w_in_EDF[expert])
        share_T1 = (mine_TK * gate_TK).sum(dim=1, keepdim=True)
        y_TD = y_TD + share_T1 * (h_TF @ layer.experts.w_out_EFD[expert])
    if layer.rule.overflow == "passthrough":
        y_TD = y_TD + (~routing.kept_TK * gate_TK).sum(dim=1, keepdim=True) * x_TD
    return y_TD
