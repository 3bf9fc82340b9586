"""Who is selected, and who gets a place: against the rule, token by token in a plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import LayerRun, run
from switch_lm.probe.subject import LayerCall, noise

TIE = 1e-6  # of a probability
FIVE_SIGMA = 5.0


def selected(runs: Sequence[LayerRun]) -> Finding:
    """The most probable experts, after a selection bias; draws, in training, as often the most probable as p says."""
    wrong, total, notes = 0, 0, []
    for one in runs:
        for call in one.calls:
            if call.layer.training and call.layer.rule.selection == "sample":
                share, expected, error = _drawn(call)
                notes.append(f"drawn: {share:.1%} the most probable, by p {expected:.1%}")
                wrong += int(abs(share - expected) > FIVE_SIGMA * error + TIE)
                total += 1
            else:
                wrong += int(_not_the_largest(call).sum())
                total += call.routing.expert_TK.numel()
    measured = f"{wrong:,} of {total:,} choices are not the rule's" + (f"; {notes[0]}" if notes else "")
    good, bad = "each token goes where its router says", "tokens go to other experts than the router says"
    return judged("selection", wrong == 0, measured, {"wrong": wrong, "choices": total}, good=good, bad=bad)


def _not_the_largest(call: LayerCall) -> Tensor:
    """Choices (T, K) whose score is below the one that the rule would take."""
    score_TE = call.routing.logits_TE.double().softmax(dim=-1)
    if call.layer.selection_bias_E is not None:
        score_TE = score_TE + call.layer.selection_bias_E
    best_TK = score_TE.topk(call.layer.rule.top_k, dim=-1).values
    chosen_TK = score_TE.gather(1, call.routing.expert_TK).sort(dim=1, descending=True).values
    return (best_TK - chosen_TK).abs() > TIE


def _drawn(call: LayerCall) -> tuple[float, float, float]:
    """How many first draws are the most probable expert: the share, what p says, and its standard error."""
    top_T = call.routing.probs_TE.max(dim=-1)
    hit_T = (call.routing.expert_TK[:, 0] == top_T.indices).double()
    p_T = top_T.values.double()
    return hit_T.mean().item(), p_T.mean().item(), (p_T * (1 - p_T)).sum().sqrt().item() / len(p_T)


def places(runs: Sequence[LayerRun]) -> Finding:
    """The first C of each queue; in random order a seed's own C; after rerouting nobody waits while there is room."""
    wrong, total, words = 0, 0, set()
    for one in runs:
        for call in one.calls:
            rule = call.layer.rule
            if call.routing.capacity is None:
                right = bool(call.routing.kept_TK.all())
            elif rule.overflow == "reroute":
                right = _no_room_is_left(call)
            elif rule.drop_order == "random" and call.layer.training:
                right = _other_with_another_seed(one, call)
            else:
                right = bool((call.routing.kept_TK == _first_come(call)).all())
            total, wrong = total + 1, wrong + (not right)
            words.add(rule.drop_order if rule.overflow != "reroute" else "reroute")
    measured = f"{wrong} of {total} queues differ from a plain loop ({', '.join(sorted(words))})"
    good = "who comes first by the rule has a place, exactly as many as there are"
    bad = "places are not given as the rule says"
    return judged("places", wrong == 0, measured, {"wrong": wrong, "queues": total}, good=good, bad=bad)


def _first_come(call: LayerCall) -> Tensor:
    """Which choices (T, K) are among the first C of their expert, counted one by one."""
    routing, rule = call.routing, call.layer.rule
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


def _no_room_is_left(call: LayerCall) -> bool:
    """In each group either all have a place or every expert is full."""
    routing, capacity = call.routing, call.routing.capacity or 0
    for assigned_N, kept_N in zip(*(x.view(routing.num_groups, -1) for x in (routing.assigned_TK, routing.kept_TK))):  # noqa: B905
        filled_E = torch.bincount(assigned_N[kept_N], minlength=routing.load_E.numel())
        if int(filled_E.max()) > capacity or not (bool(kept_N.all()) or bool((filled_E == capacity).all())):
            return False
    return True


def _other_with_another_seed(one: LayerRun, call: LayerCall) -> bool:
    """The same number under every seed, but not the same tokens, unless nothing or everything is dropped."""
    _, again = run(call.layer, call.x_BSD, one.factor)
    with noise(1, call.x_BSD.device), torch.inference_mode():
        _, other = call.layer(call.x_BSD.clone(), capacity_factor=one.factor)
    if not torch.equal(again.kept_TK, call.routing.kept_TK):
        return False
    if (
        call.layer.rule.selection == "sample" or int((~again.kept_TK).sum()) < 2
    ):  # others are selected, or all but one stay
        return True
    return not torch.equal(other.kept_TK, again.kept_TK) and int(other.kept_TK.sum()) == int(again.kept_TK.sum())
