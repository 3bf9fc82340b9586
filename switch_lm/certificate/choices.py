"""Are experts selected and capacity slots given by the rule, and is every choice computed once or dropped?"""

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
TIE = 1e-6  # of a probability
FIVE_SIGMA = 5.0
NUM_TOKENS = (1, 7, 100)  # where a capacity that is rounded down, or in floats, shows


def selected(cases: Sequence[Case]) -> Finding:
    """The most probable experts, after a selection bias; draws, in training, as often the most probable as p says."""
    wrong, total, note = 0, 0, ""
    for case in cases:
        if case.layer.training and case.layer.rule.selection == "sample":
            share, expected, error = _drawn(case)
            note = note or f"; drawn: {share:.1%} the most probable, by p {expected:.1%}"
            wrong += int(abs(share - expected) > FIVE_SIGMA * error + TIE)
            total += 1
        else:
            wrong += int(_not_the_largest(case).sum())
            total += case.routing.expert_TK.numel()
    return judged(
        "selection",
        wrong == 0,
        f"{wrong:,} of {total:,} choices are not the rule's{note}",
        {"wrong": wrong, "choices": total},
        good="each token goes where its router says",
        bad="tokens go to other experts than the router says",
    )


def _not_the_largest(case: Case) -> Tensor:
    """Choices (T, K) whose score is below the one that the rule would take."""
    score_TE = case.routing.logits_TE.double().softmax(dim=-1)
    if case.layer.selection_bias_E is not None:
        score_TE = score_TE + case.layer.selection_bias_E
    best_TK = score_TE.topk(case.layer.rule.top_k, dim=-1).values
    chosen_TK = score_TE.gather(1, case.routing.expert_TK).sort(dim=1, descending=True).values
    return (best_TK - chosen_TK).abs() > TIE


def _drawn(case: Case) -> tuple[float, float, float]:
    """How many first draws are the most probable expert: the share, what p says, and its standard error."""
    top_T = case.routing.probs_TE.max(dim=-1)
    hit_T = (case.routing.expert_TK[:, 0] == top_T.indices).double()
    p_T = top_T.values.double()
    return hit_T.mean().item(), p_T.mean().item(), (p_T * (1 - p_T)).sum().sqrt().item() / len(p_T)


def slots(cases: Sequence[Case]) -> Finding:
    """The first C of each queue; in random order a seed's own C; after rerouting nobody waits while there is room."""
    wrong, words = 0, set()
    for case in cases:
        rule, routing = case.layer.rule, case.routing
        if routing.capacity is None:
            right = bool(routing.kept_TK.all())
        elif rule.overflow == "reroute":
            right = _no_room_is_left(case)
        elif rule.drop_order == "random" and case.layer.training:
            right = _other_with_another_seed(case)
        else:
            right = bool((routing.kept_TK == _first_come(case)).all())
        wrong += not right
        words.add(rule.drop_order if rule.overflow != "reroute" else "reroute")
    return judged(
        "slots",
        wrong == 0,
        f"{wrong} of {len(cases)} queues differ from a plain loop ({', '.join(sorted(words))})",
        {"wrong": wrong, "queues": len(cases)},
        good="who comes first by the rule has a slot, exactly as many as there are",
        bad="slots are not given as the rule says",
    )


def _first_come(case: Case) -> Tensor:
    """Which choices (T, K) are among the first C of their expert, counted one by one."""
    routing, rule = case.routing, case.layer.rule
    T, K = routing.expert_TK.shape
    size, capacity = T // routing.num_groups, routing.capacity or T * K
    expert, kept = routing.expert_TK.tolist(), torch.zeros(T, K, dtype=torch.bool, device=routing.expert_TK.device)
    surest_T = routing.probs_TE.amax(dim=-1).tolist()
    for group in range(routing.num_groups):
        tokens = list(range(group * size, (group + 1) * size))
        if rule.drop_order == "probability":
            tokens.sort(key=lambda t: -surest_T[t])  # stable
        by_choice = rule.queue_order == "choice"
        queue = [(t, k) for k in range(K) for t in tokens] if by_choice else [(t, k) for t in tokens for k in range(K)]
        taken = [0] * routing.load_E.numel()
        for t, k in queue:
            kept[t, k] = taken[expert[t][k]] < capacity
            taken[expert[t][k]] += 1
    return kept


def _no_room_is_left(case: Case) -> bool:
    """In each group either all choices are kept or every expert is full."""
    routing, capacity = case.routing, case.routing.capacity or 0
    assigned_GN, kept_GN = (x.view(routing.num_groups, -1) for x in (routing.assigned_TK, routing.kept_TK))
    for assigned_N, kept_N in zip(assigned_GN, kept_GN, strict=True):
        filled_E = torch.bincount(assigned_N[kept_N], minlength=routing.load_E.numel())
        if int(filled_E.max()) > capacity or not (bool(kept_N.all()) or bool((filled_E == capacity).all())):
            return False
    return True


def _other_with_another_seed(case: Case) -> bool:
    """The same number under every seed, but not the same tokens, unless nothing or everything is dropped."""
    again_TK, other_TK = (run(case.layer, case.x_BSD, case.factor, seed=seed)[1].kept_TK for seed in (0, 1))
    kept_TK = case.routing.kept_TK
    if not torch.equal(again_TK, kept_TK):
        return False
    if case.layer.rule.selection == "sample" or int((~kept_TK).sum()) < 2:  # others are selected, or all but one stay
        return True
    return not torch.equal(other_TK, kept_TK) and int(other_TK.sum()) == int(kept_TK.sum())


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
                wrong.append(f"layer {case.number:02d}, {case.condition}, {num_tokens:,} tokens: {slots} slots")
            elif slots is not None and fullest > slots:
                wrong.append(f"layer {case.number:02d}, {case.condition}: {fullest:,} computed in {slots:,} slots")
            if case.number == 0 and slots is not None and case.condition in shown:
                shown[case.condition].append(f"{num_tokens:,} -> {slots:,}")
    by_tokens = "; ".join(f"{condition}: {', '.join(pairs) or 'no limit'}" for condition, pairs in shown.items())
    return judged(
        "capacity",
        not wrong,
        "; ".join(wrong[:3]) or f"tokens -> slots: {by_tokens}",
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
