"""Is every choice accounted for? What each expert computed is found out by changing it and seeing which tokens move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction

import torch
from torch import Tensor

from switch_lm.check.finding import Finding, held
from switch_lm.check.leaks import named
from switch_lm.check.subject import LayerCall, Subject, calls, largest, noise, seeded
from switch_lm.model import SwitchLM
from switch_lm.routing import Routing
from switch_lm.switch import SwitchFeedForward

SAME = 1e-4  # of the largest output, float32
NUM_TOKENS = (1, 7, 100)  # where a capacity that is rounded down, or in floats, shows


def check(subject: Subject) -> list[Finding]:
    """As in training, but for dropout and random drops."""
    model, ids_BS = subject.without_noise(jitter=True), subject.few[0]
    by_factor = {factor: layer_calls(model, ids_BS, capacity_factor=factor) for factor in subject.factors}
    return [_conserved(by_factor), _capacity(by_factor), _output(by_factor)]


def layer_calls(model: SwitchLM, ids_BS: Tensor, *, capacity_factor: float | None) -> list[LayerCall]:
    """Every Switch layer alone, on the input that it has in the model, so that it can be run again."""
    with calls(model) as seen:
        seeded(model, ids_BS, seed=0, capacity_factor=capacity_factor)
    return [LayerCall(c.layer, c.x_BSD, *_run(c.layer, c.x_BSD, capacity_factor)) for c in seen]


def _run(layer: SwitchFeedForward, x_BSD: Tensor, capacity_factor: float | None) -> tuple[Tensor, Routing]:
    """With the same noise each time, so that a random order is the same order; what it may do to its input is lost."""
    with noise(0, x_BSD.device), torch.inference_mode():
        found: tuple[Tensor, Routing] = layer(x_BSD.clone(), capacity_factor=capacity_factor)
        return found


ByFactor = dict[float | None, list[LayerCall]]


@dataclass
class Count:
    """Choices at one capacity, over all layers and experts."""

    selected: int = 0
    computed: int = 0
    dropped: int = 0


def _conserved(by_factor: ByFactor) -> Finding:
    """Per expert and layer selected = computed + dropped; after rerouting, which moves choices, per layer."""
    counts, wrong, num_experts = {factor: Count() for factor in by_factor}, 0, 0
    for factor, layers in by_factor.items():
        for call in layers:
            routing = call.routing
            selected_E = _counted(routing.expert_TK, routing)
            dropped_E = _counted(routing.expert_TK[~routing.kept_TK], routing)
            computed_E = _computed(call, factor)
            fit_E = _fit(routing)
            right_E = (selected_E == routing.load_E) & (computed_E == routing.kept_E)
            if call.layer.rule.overflow == "reroute":
                right_E &= (selected_E.sum() == (computed_E + dropped_E).sum()) & (computed_E >= fit_E)
            else:
                right_E &= (selected_E == computed_E + dropped_E) & (computed_E == fit_E)
            wrong, num_experts = wrong + int((~right_E).sum()), num_experts + len(right_E)
            for name, found_E in (("selected", selected_E), ("computed", computed_E), ("dropped", dropped_E)):
                setattr(counts[factor], name, getattr(counts[factor], name) + int(found_E.sum()))
    measured = "; ".join(
        f"{named(factor)}: {c.selected:,} selected = {c.computed:,} computed + {c.dropped:,} dropped"
        for factor, c in counts.items()
    )
    meaning = "each choice is computed by its expert, once, or is dropped"
    if wrong:
        meaning = f"the numbers of {wrong} of {num_experts} experts do not add up"
    figures = {f"{name}, {named(factor)}": value for factor, c in counts.items() for name, value in asdict(c).items()}
    return Finding("choices conserved", held(wrong == 0), measured, meaning, figures | {"wrong": wrong})


def _fit(routing: Routing) -> Tensor:
    """How many of the choices that selected each expert have a place (E): the capacity, if there are so many."""
    group_GN = routing.expert_TK.view(routing.num_groups, -1)
    selected_GE = torch.stack([_counted(choices, routing) for choices in group_GN])
    return (selected_GE if routing.capacity is None else selected_GE.clamp(max=routing.capacity)).sum(dim=0)


def _counted(experts: Tensor, routing: Routing) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=routing.load_E.numel())


def _computed(call: LayerCall, capacity_factor: float | None) -> Tensor:
    """How many tokens each expert computed (E): those whose output changes with the sign of its first matrix."""
    counts = []
    for expert in range(call.layer.num_experts):
        with _drawn_anew(call.layer, expert) as w_in_DF:
            first_BSD, _ = _run(call.layer, call.x_BSD, capacity_factor)
            w_in_DF.neg_()
            second_BSD, _ = _run(call.layer, call.x_BSD, capacity_factor)
        counts.append((first_BSD != second_BSD).any(dim=-1).sum())
    return torch.stack(counts)


@contextmanager
def _drawn_anew(layer: SwitchFeedForward, expert: int) -> Iterator[Tensor]:
    """Random weights for one expert, so that none of its outputs is 0; gives its first matrix."""
    weights = [layer.experts.w_in_EDF.data[expert], layer.experts.w_out_EFD.data[expert]]
    kept = [weight.clone() for weight in weights]
    with noise(expert, weights[0].device):
        for weight in weights:
            weight.normal_()
    try:
        yield weights[0]
    finally:
        for weight, as_it_was in zip(weights, kept, strict=True):
            weight.copy_(as_it_was)


def _capacity(by_factor: ByFactor) -> Finding:
    """The smallest C with C x E >= factor x T, in fractions, within 1 .. T; and no expert computes more."""
    shown: dict[float | None, list[str]] = {factor: [] for factor in by_factor}
    wrong = []
    for factor, layers in by_factor.items():
        for number, call in enumerate(layers):
            for routing in _at_several_lengths(call, factor):
                tokens, capacity, fullest = len(routing.expert_TK), routing.capacity, int(routing.kept_E.max())
                if not _is_capacity(capacity, tokens, routing.load_E.numel(), factor):
                    wrong.append(f"layer {number:02d}, {named(factor)}, {tokens:,} tokens: {capacity} places")
                elif capacity is not None and fullest > capacity:
                    wrong.append(f"layer {number:02d}, {named(factor)}: {fullest:,} computed in {capacity:,} places")
                if number == 0 and capacity is not None:
                    shown[factor].append(f"{tokens:,} -> {capacity:,}")
    measured = "tokens -> places: " + "; ".join(
        f"{named(factor)}: {', '.join(pairs) or 'none'}" for factor, pairs in shown.items()
    )
    meaning = "ceil(factor x tokens / experts) to the last one, at least 1; no expert computes more"
    if wrong:
        measured = "; ".join(wrong[:3])
        meaning = "not ceil(factor x tokens / experts) to the last one and at least 1, or not kept to"
    return Finding("capacity", held(not wrong), measured, meaning, {"wrong": len(wrong)})


def _at_several_lengths(call: LayerCall, factor: float | None) -> Iterator[Routing]:
    """The layer's routing of the first tokens of its input, as one row."""
    tokens_TD = call.x_BSD.flatten(0, 1)
    for num_tokens in sorted({min(number, len(tokens_TD)) for number in (*NUM_TOKENS, len(tokens_TD))}):
        yield _run(call.layer, tokens_TD[None, :num_tokens], factor)[1]


def _is_capacity(capacity: int | None, num_tokens: int, num_experts: int, factor: float | None) -> bool:
    if factor is None or capacity is None:
        return factor is None and capacity is None
    if not 1 <= capacity <= num_tokens:
        return False
    wanted = Fraction(str(factor)) * num_tokens
    large_enough = capacity * num_experts >= wanted or capacity == num_tokens
    return large_enough and (capacity == 1 or (capacity - 1) * num_experts < wanted)


def _output(by_factor: ByFactor) -> Finding:
    """gate x expert(the layer's clean input) for kept choices, 0 or what overflow says for others, by a plain loop."""
    differences = [
        (call.y_BSD.flatten(0, 1) - _by_a_loop(call)) / call.y_BSD.abs().max().clamp(min=1e-20)
        for layers in by_factor.values()
        for call in layers
    ]
    difference = largest(differences)
    holds = difference <= SAME  # a NaN does not
    meaning = "gate x expert(clean input) for what was kept, nothing for what was dropped"
    if not holds:
        meaning = "a layer does not give gate x expert(clean input) for what was kept, and nothing for what was dropped"
    elif any(call.layer.rule.overflow == "passthrough" for layers in by_factor.values() for call in layers):
        meaning = "gate x expert(clean input) for what was kept, gate x input for what was dropped"
    measured = f"differs by {difference:.1e} of the largest output from a plain loop"
    return Finding("layer's output", held(holds), measured, meaning, {"difference": difference})


@torch.inference_mode()
def _by_a_loop(call: LayerCall) -> Tensor:
    """What the layer should give (T, D), expert by expert over all tokens."""
    layer, routing, x_TD = call.layer, call.routing, call.x_BSD.flatten(0, 1)
    passes = layer.rule.overflow == "passthrough"
    y_TD = torch.zeros_like(x_TD) if layer.shared is None else layer.shared(x_TD)
    for k in range(routing.expert_TK.shape[1]):
        gate_T1, kept_T1 = routing.gate_TK[:, k : k + 1], routing.kept_TK[:, k : k + 1]
        for expert in range(layer.num_experts):
            mine_T1 = routing.assigned_TK[:, k : k + 1] == expert
            w_in_DF, w_out_FD = layer.experts.w_in_EDF[expert], layer.experts.w_out_EFD[expert]
            computed_TD = layer.experts.activation(x_TD @ w_in_DF) @ w_out_FD
            y_TD = y_TD + (mine_T1 & kept_T1) * gate_T1 * computed_TD
        if passes:
            y_TD = y_TD + ~kept_T1 * gate_T1 * x_TD
    return y_TD
