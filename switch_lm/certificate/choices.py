"""Is every choice accounted for? An expert is changed to see which tokens it computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Case, run
from switch_lm.probe.subject import noise
from switch_lm.routers.routing import Routing

QUIET = ("as trained", "one character")  # conditions that are checked but not shown: they repeat others
NUM_TOKENS = (1, 7, 100)  # where a capacity that is rounded down, or in floats, shows


def conserved(cases: Sequence[Case]) -> Finding:
    """Per expert and layer selected = computed + dropped; after rerouting, which moves choices, per layer."""
    counts: dict[str, Counter[str]] = {case.condition: Counter() for case in cases}
    wrong, num_experts = 0, 0
    for case in cases:
        routing = case.routing
        selected_E = _counted(routing.expert_TK, routing)
        dropped_E = _counted(routing.expert_TK[~routing.kept_TK], routing)
        computed_E = _computed(case)
        fit_E = _fit(routing)
        right_E = (selected_E == routing.load_E) & (computed_E == routing.kept_E)
        if case.layer.rule.overflow == "reroute":
            right_E &= (selected_E.sum() == (computed_E + dropped_E).sum()) & (computed_E >= fit_E)
        else:
            right_E &= (selected_E == computed_E + dropped_E) & (computed_E == fit_E)
        wrong, num_experts = wrong + int((~right_E).sum()), num_experts + len(right_E)
        for what, count_E in (("selected", selected_E), ("computed", computed_E), ("dropped", dropped_E)):
            counts[case.condition][what] += int(count_E.sum())
    return judged(
        "choices conserved",
        wrong == 0,
        "; ".join(
            "{}: {:,} selected = {:,} computed + {:,} dropped".format(condition, *count.values())
            for condition, count in counts.items()
            if condition not in QUIET
        ),
        {f"{what}, {condition}": n for condition, count in counts.items() for what, n in count.items()}
        | {"wrong": wrong},
        good="each choice is computed by its expert, once, or is dropped",
        bad=f"the numbers of {wrong} of {num_experts} experts do not add up",
    )


def _fit(routing: Routing) -> Tensor:
    """How many of the choices that selected each expert get a capacity slot (E)."""
    group_GN = routing.expert_TK.view(routing.num_groups, -1)
    selected_GE = torch.stack([_counted(choices, routing) for choices in group_GN])
    return (selected_GE if routing.capacity is None else selected_GE.clamp(max=routing.capacity)).sum(dim=0)


def _counted(experts: Tensor, routing: Routing) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=routing.load_E.numel())


def _computed(case: Case) -> Tensor:
    """How many tokens each expert computed (E): those whose output changes with the sign of its first matrix.

    Its weights are drawn and gates are 1, so that nothing it computes is lost.
    """
    layer, counts = deepcopy(case.layer), []
    layer.rule = replace(layer.rule, gate_scale="straight_through", renormalize_gates=False)
    for expert in range(layer.num_experts):
        w_in_DF, w_out_FD = layer.experts.w_in_EDF.data[expert], layer.experts.w_out_EFD.data[expert]
        with noise(expert, w_in_DF.device):
            w_in_DF.normal_()
            w_out_FD.normal_()
        first_BSD, _ = run(layer, case.x_BSD, case.factor)
        w_in_DF.neg_()
        second_BSD, _ = run(layer, case.x_BSD, case.factor)
        counts.append((first_BSD != second_BSD).any(dim=-1).sum())
    return torch.stack(counts)


def capacity(cases: Sequence[Case]) -> Finding:
    """The smallest C with C x E >= factor x T, in fractions, within 1 .. T; and no expert computes more."""
    shown: dict[str, list[str]] = {case.condition: [] for case in cases if case.condition not in QUIET}
    wrong = []
    for case in cases:
        tokens_TD = case.x_BSD.flatten(0, 1)
        for num_tokens in sorted({min(number, len(tokens_TD)) for number in (*NUM_TOKENS, len(tokens_TD))}):
            _, routing = run(case.layer, tokens_TD[None, :num_tokens], case.factor)
            slots, fullest = routing.capacity, int(routing.kept_E.max())
            if not _is_capacity(slots, num_tokens, routing.load_E.numel(), case.configured):
                wrong.append(f"layer {case.number:02d}, {case.condition}, {num_tokens:,} tokens: {slots} places")
            elif slots is not None and fullest > slots:
                wrong.append(f"layer {case.number:02d}, {case.condition}: {fullest:,} computed in {slots:,} places")
            if case.number == 0 and slots is not None and case.condition in shown:
                shown[case.condition].append(f"{num_tokens:,} -> {slots:,}")
    by_tokens = "; ".join(f"{condition}: {', '.join(pairs) or 'no limit'}" for condition, pairs in shown.items())
    return judged(
        "capacity",
        not wrong,
        "; ".join(wrong[:3]) or f"tokens -> places: {by_tokens}",
        {"wrong": len(wrong)},
        good="ceil(factor x tokens / experts) to the last one, at least 1; no expert computes more",
        bad="not the configured ceil(factor x tokens / experts), to the last one and at least 1, or not kept to",
    )


def _is_capacity(capacity: int | None, num_tokens: int, num_experts: int, factor: float | None) -> bool:
    if factor is None or capacity is None:
        return factor is None and capacity is None
    if not 1 <= capacity <= num_tokens:
        return False
    wanted = Fraction(str(factor)) * num_tokens
    large_enough = capacity * num_experts >= wanted or capacity == num_tokens
    return large_enough and (capacity == 1 or (capacity - 1) * num_experts < wanted)
