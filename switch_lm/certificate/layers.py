"""Every Switch layer alone, on the input that it has in the model: in training at several capacities, in evaluation."""

from copy import deepcopy
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.leaks import named
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import LayerCall, Subject, calls, noise, seeded, tried
from switch_lm.routers.routing import Routing

SMALLEST = 1e-20  # a straight-through gate divides by no smaller p
Factor = float | EllipsisType | None  # ...: as the layer has it


@dataclass(frozen=True)
class Case(LayerCall):
    """One layer's call under one condition."""

    condition: str
    number: int  # of the layer
    factor: Factor
    configured: float | None  # the capacity factor that should hold


def run(layer: SwitchFeedForward, x_BSD: Tensor, factor: Factor, *, seed: int = 0) -> tuple[Tensor, Routing]:
    """The layer alone, with equal noise for equal seeds. Whatever it does to its input is lost."""
    with noise(seed, x_BSD.device), torch.inference_mode():
        result: tuple[Tensor, Routing] = layer(x_BSD.clone(), capacity_factor=factor)
        return result


def cases_of(subject: Subject) -> list[Case]:
    """In training without dropout and random drops; as validation routes; and one character, as in generation."""
    training, evaluated = subject.without_noise(jitter=True), deepcopy(subject.model)
    ids_BS, config = subject.few[0], subject.model.config
    conditions: list[tuple[str, SwitchLM, Tensor, Factor, float | None]] = [
        *((named(factor), training, ids_BS, factor, factor) for factor in tried(config.capacity_factor)),
        ("as trained", training, ids_BS, ..., config.capacity_factor),
        ("evaluation", evaluated, ids_BS, ..., config.eval_capacity_factor),
        ("one character", evaluated, ids_BS[:1, :1], None, None),
    ]
    result = []
    for condition, model, input_BS, factor, configured in conditions:
        with calls(model) as seen:
            seeded(model, input_BS, seed=0, capacity_factor=factor)
        for number, call in enumerate(seen):
            alone = run(call.layer, call.x_BSD, factor)
            result.append(Case(call.layer, call.x_BSD, *alone, condition, number, factor, configured))
    return result


def gates_of(layer: SwitchFeedForward, prob_TE: Tensor, assigned_TK: Tensor) -> Tensor:
    """The gates (T, K) that follow by the rule from the probability among all experts (eq. 1 and 2)."""
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
