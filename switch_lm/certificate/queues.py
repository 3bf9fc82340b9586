"""Which experts are selected, and which choices get a slot: against the rule, token by token in a plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Case, run

TIE = 1e-6  # of a probability
FIVE_SIGMA = 5.0


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
        "places",
        wrong == 0,
        f"{wrong} of {len(cases)} queues differ from a plain loop ({', '.join(sorted(words))})",
        {"wrong": wrong, "queues": len(cases)},
        good="who comes first by the rule has a place, exactly as many as there are",
        bad="places are not given as the rule says",
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
