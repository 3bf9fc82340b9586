"""Is every choice accounted for? An expert is changed to see which tokens it computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Factor, LayerRun, run
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.probe.subject import LayerCall, noise
from switch_lm.routers.routing import Routing

QUIET = ("as trained", "one character")  # conditions that are checked but not shown: they repeat others
NUM_TOKENS = (1, 7, 100)  # where a capacity that is rounded down, or in floats, shows


def conserved(runs: Sequence[LayerRun]) -> Finding:
    """Per expert and layer selected = computed + dropped; after rerouting, which moves choices, per layer."""
    counts, wrong, num_experts = {one.name: Counter(selected=0, computed=0, dropped=0) for one in runs}, 0, 0
    for one in runs:
        for call in one.calls:
            routing = call.routing
            selected_E = _counted(routing.expert_TK, routing)
            dropped_E = _counted(routing.expert_TK[~routing.kept_TK], routing)
            computed_E = _computed(call, one.factor)
            fit_E = _fit(routing)
            right_E = (selected_E == routing.load_E) & (computed_E == routing.kept_E)
            if call.layer.rule.overflow == "reroute":
                right_E &= (selected_E.sum() == (computed_E + dropped_E).sum()) & (computed_E >= fit_E)
            else:
                right_E &= (selected_E == computed_E + dropped_E) & (computed_E == fit_E)
            wrong, num_experts = wrong + int((~right_E).sum()), num_experts + len(right_E)
            for what, count_E in (("selected", selected_E), ("computed", computed_E), ("dropped", dropped_E)):
                counts[one.name][what] += int(count_E.sum())
    measured = "; ".join(
        "{}: {:,} selected = {:,} computed + {:,} dropped".format(name, *c.values())
        for name, c in counts.items()
        if name not in QUIET
    )
    figures = {f"{what}, {name}": value for name, c in counts.items() for what, value in c.items()}
    good = "each choice is computed by its expert, once, or is dropped"
    bad = f"the numbers of {wrong} of {num_experts} experts do not add up"
    return judged("choices conserved", wrong == 0, measured, figures | {"wrong": wrong}, good=good, bad=bad)


def _fit(routing: Routing) -> Tensor:
    """How many of the choices that selected each expert have a place (E): at most the capacity."""
    group_GN = routing.expert_TK.view(routing.num_groups, -1)
    selected_GE = torch.stack([_counted(choices, routing) for choices in group_GN])
    return (selected_GE if routing.capacity is None else selected_GE.clamp(max=routing.capacity)).sum(dim=0)


def _counted(experts: Tensor, routing: Routing) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=routing.load_E.numel())


def _computed(call: LayerCall, factor: Factor) -> Tensor:
    """How many tokens each expert computed (E): those whose output changes with the sign of its first matrix."""
    counts = []
    for expert in range(call.layer.num_experts):
        with _redrawn(call.layer, expert) as w_in_DF:
            first_BSD, _ = run(call.layer, call.x_BSD, factor)
            w_in_DF.neg_()
            second_BSD, _ = run(call.layer, call.x_BSD, factor)
        counts.append((first_BSD != second_BSD).any(dim=-1).sum())
    return torch.stack(counts)


@contextmanager
def _redrawn(layer: SwitchFeedForward, expert: int) -> Iterator[Tensor]:
    """Random weights for one expert and gates of 1, so that nothing it computes is lost; gives its first matrix."""
    rule, weights = layer.rule, [layer.experts.w_in_EDF.data[expert], layer.experts.w_out_EFD.data[expert]]
    kept = [weight.clone() for weight in weights]
    with noise(expert, weights[0].device):
        for weight in weights:
            weight.normal_()
    layer.rule = replace(rule, gate_scale="straight_through", renormalize_gates=False)
    try:
        yield weights[0]
    finally:
        layer.rule = rule
        for weight, as_it_was in zip(weights, kept, strict=True):
            weight.copy_(as_it_was)


def capacity(runs: Sequence[LayerRun]) -> Finding:
    """The smallest C with C x E >= factor x T, in fractions, within 1 .. T; and no expert computes more."""
    shown: dict[str, list[str]] = {one.name: [] for one in runs if one.name not in QUIET}
    wrong = []
    for one in runs:
        for number, call in enumerate(one.calls):
            for routing in _at_several_lengths(call, one.factor):
                tokens, places, fullest = len(routing.expert_TK), routing.capacity, int(routing.kept_E.max())
                if not _is_capacity(places, tokens, routing.load_E.numel(), one.configured):
                    wrong.append(f"layer {number:02d}, {one.name}, {tokens:,} tokens: {places} places")
                elif places is not None and fullest > places:
                    wrong.append(f"layer {number:02d}, {one.name}: {fullest:,} computed in {places:,} places")
                if number == 0 and places is not None and one.name in shown:
                    shown[one.name].append(f"{tokens:,} -> {places:,}")
    measured = "tokens -> places: " + "; ".join(f"{name}: {', '.join(p) or 'no limit'}" for name, p in shown.items())
    measured = "; ".join(wrong[:3]) or measured
    good = "ceil(factor x tokens / experts) to the last one, at least 1; no expert computes more"
    bad = "not the configured ceil(factor x tokens / experts), to the last one and at least 1, or not kept to"
    return judged("capacity", not wrong, measured, {"wrong": len(wrong)}, good=good, bad=bad)


def _at_several_lengths(call: LayerCall, factor: Factor) -> Iterator[Routing]:
    """The layer's routing of the first tokens of its input, as one row."""
    tokens_TD = call.x_BSD.flatten(0, 1)
    for num_tokens in sorted({min(number, len(tokens_TD)) for number in (*NUM_TOKENS, len(tokens_TD))}):
        yield run(call.layer, tokens_TD[None, :num_tokens], factor)[1]


def _is_capacity(capacity: int | None, num_tokens: int, num_experts: int, factor: float | None) -> bool:
    if factor is None or capacity is None:
        return factor is None and capacity is None
    if not 1 <= capacity <= num_tokens:
        return False
    wanted = Fraction(str(factor)) * num_tokens
    large_enough = capacity * num_experts >= wanted or capacity == num_tokens
    return large_enough and (capacity == 1 or (capacity - 1) * num_experts < wanted)
