"""Are experts selected and capacity slots given as by the oracle, and is every choice computed once or dropped?"""

import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, judged
from switch_lm.certificate.layers import Case, Judged, run, selected_by_token
from switch_lm.probe.subject import noise, used
from switch_lm.routers.base import Router
from switch_lm.routers.routing import Routing

QUIET = ("as trained", "one character")  # conditions that are checked but not shown: they repeat others
CHANCE = 1e-6  # of a draw that is right to be called wrong
NUM_TOKENS = (1, 7, 100)  # where a capacity that is rounded down, or in floats, shows


def selected(cases: Sequence[Case]) -> Finding:
    """The oracle's experts; draws, in training, as often the most probable as p says."""
    wrong, total, note = 0, 0, ""
    for case in cases:
        result = case.judged
        if case.promise.draws:
            share, expected, off = _drawn(case, result.expected.probs_TE)
            note = note or f"; drawn: {share:.1%} the most probable, by p {expected:.1%}"
            wrong += off
            total += 1
        else:
            wrong += result.wrong
            total += len(result.expected.token)
    return judged(
        "selection",
        wrong == 0,
        f"{wrong:,} of {total:,} choices are not the rule's{note}",
        {"wrong": wrong, "choices": total},
        good="each token goes where its router says",
        bad="tokens go to other experts than the router says",
    )


def _drawn(case: Case, probs_TE: Tensor) -> tuple[float, float, bool]:
    """How many first draws are the most probable expert: the share, what p says, and whether one is off by p.

    Of every expert too. Bernstein's bound says how far chance moves a share; it holds for rare misses too, where no
    normal distribution does.
    """
    firsts = [(t, experts[0]) for t, experts in enumerate(selected_by_token(case.quiet.routing)) if experts]
    token_M, first_M = torch.tensor(firsts, device=probs_TE.device).view(-1, 2).unbind(1)
    p_ME = probs_TE[token_M].double()
    hit_ME = (first_M[:, None] == torch.arange(p_ME.shape[1], device=p_ME.device)).double()
    top_M1 = p_ME.argmax(dim=1, keepdim=True)
    columns = p_ME.shape[1] + 1  # the most probable one, then each
    p_MC, hit_MC = (torch.cat([x_ME.gather(1, top_M1), x_ME], dim=1) for x_ME in (p_ME, hit_ME))
    surprise, variance_C = math.log(2 * columns / CHANCE), (p_MC * (1 - p_MC)).sum(dim=0)
    bound_C = surprise / 3 + ((surprise / 3) ** 2 + 2 * surprise * variance_C).sqrt()
    off = bool(((hit_MC - p_MC).sum(dim=0).abs() > bound_C).any())
    return hit_MC[:, 0].mean().item(), p_MC[:, 0].mean().item(), off


def slots(cases: Sequence[Case]) -> Finding:
    """The oracle's; in random order a seed's own C; after rerouting nobody waits while there is room."""
    results = [_slots(case, case.judged) for case in cases]
    wrong, tied, orders = results.count(False), results.count(None), {_order(case) for case in cases}
    note = f"; {tied} are not compared: two scores are tied" if tied else ""
    return judged(
        "slots",
        wrong == 0,
        f"{wrong} of {len(cases)} queues differ from a plain loop ({', '.join(sorted(orders))}){note}",
        {"wrong": wrong, "queues": len(cases)},
        good="who comes first by the rule has a slot, exactly as many as there are",
        bad="slots are not given as the rule says",
    )


def _order(case: Case) -> str:
    if case.promise.experts_per_token is None:
        return "experts choose"
    return "reroute" if case.promise.reroutes else case.layer.router.options.drop_order


def _slots(case: Case, result: Judged) -> bool | None:
    """Whether the slots are right; None: equal scores were ordered in another way than the oracle's."""
    routing, expected = case.quiet.routing, result.expected
    if expected.kept is None:
        return _no_room_is_left(routing) if case.promise.reroutes else _other_with_another_seed(case)
    if result.tied:
        return None
    if not expected.kept:  # no assignment at all
        return True
    matched_N = result.place_N >= 0
    kept_N = torch.tensor(expected.kept, device=matched_N.device)[result.place_N]
    same_N = (kept_N == routing.kept_N) & (result.same_expert_N(routing) | ~kept_N)
    return bool(same_N[matched_N].all())


def _no_room_is_left(routing: Routing) -> bool:
    """In each group either all choices are kept or every expert is full."""
    capacity = routing.capacity or 0
    assigned_GN, kept_GN = (x.view(routing.num_groups, -1) for x in (routing.assigned_N, routing.kept_N))
    for assigned_N, kept_N in zip(assigned_GN, kept_GN, strict=True):
        filled_E = torch.bincount(assigned_N[kept_N], minlength=routing.load_E.numel())
        if int(filled_E.max()) > capacity or not (bool(kept_N.all()) or bool((filled_E == capacity).all())):
            return False
    return True


def _other_with_another_seed(case: Case) -> bool:
    """The same number under every seed, but not the same tokens, unless nothing or everything is dropped."""
    again_N, other_N = (run(case.quiet, case.factor, seed=seed).routing.kept_N for seed in (0, 1))
    kept_N = case.quiet.routing.kept_N
    if not torch.equal(again_N, kept_N):
        return False
    if case.promise.draws or int((~kept_N).sum()) < 2:  # others are selected, or all but one stay
        return True
    return not torch.equal(other_N, kept_N) and int(other_N.sum()) == int(kept_N.sum())


def conserved(cases: Sequence[Case]) -> Finding:
    """Per expert and layer selected = computed + dropped; after rerouting, which moves choices, per layer."""
    counts: dict[str, Counter[str]] = {case.condition: Counter() for case in cases}
    wrong, num_experts = 0, 0
    for case in cases:
        routing = case.routing
        used_N = used(routing)
        selected_E = _counted(routing.expert_N[used_N], routing)
        dropped_E = _counted(routing.expert_N[used_N & ~routing.kept_N], routing)
        computed_E = _computed(case)
        fit_E = _fit(routing)
        right_E = (selected_E == routing.load_E) & (computed_E == routing.kept_E)
        if case.promise.reroutes:
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
    group_N, used_N = routing.token_N // (routing.num_tokens // routing.num_groups), used(routing)
    place_N = (group_N * routing.num_experts + routing.expert_N)[used_N]
    selected_GE = torch.bincount(place_N, minlength=routing.num_groups * routing.num_experts)
    selected_GE = selected_GE.view(-1, routing.num_experts)
    return (selected_GE if routing.capacity is None else selected_GE.clamp(max=routing.capacity)).sum(dim=0)


def _counted(experts: Tensor, routing: Routing) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=routing.load_E.numel())


class _Repeats(Router):
    """Gives the routing that it has."""

    has_weights = False
    routing: Routing

    def assign(self, x_TD: Tensor, logits_TE: Any, **options: Any) -> Routing:
        return self.routing


def _computed(case: Case) -> Tensor:
    """How many tokens each expert computed (E): those whose output changes with the sign of its first matrix.

    Its weights are drawn and gates are 1, so that nothing it computes is lost.
    """
    layer, counts = deepcopy(case.layer), []
    router = _Repeats(layer.router.options, d_model=case.x_BSD.shape[-1], num_experts=layer.num_experts)
    router.routing = replace(case.routing, gate_N=torch.ones_like(case.routing.gate_N))
    layer.router, call = router, replace(case, layer=layer)
    for expert in range(layer.num_experts):
        w_in_DF, w_out_FD = layer.experts.w_in_EDF.data[expert], layer.experts.w_out_EFD.data[expert]
        with noise(expert, w_in_DF.device):
            w_in_DF.normal_()
            w_out_FD.normal_()
        first_BSD = run(call, case.factor).y_BSD
        w_in_DF.neg_()
        counts.append((first_BSD != run(call, case.factor).y_BSD).any(dim=-1).sum())
    return torch.stack(counts)


def capacity(cases: Sequence[Case]) -> Finding:
    """The smallest C with C x E >= factor x T, in fractions, within 1 .. T; and no expert computes more."""
    shown: dict[str, list[str]] = {case.condition: [] for case in cases if case.condition not in QUIET}
    wrong = []
    for case in cases:
        total = case.x_BSD.shape[0] * case.x_BSD.shape[1]
        for num_tokens in sorted({min(number, total) for number in (*NUM_TOKENS, total)}):
            one = run(_first(case, num_tokens), case.factor)
            slots, fullest = one.capacity, int(one.routing.kept_E.max())
            if not _is_capacity(slots, num_tokens, one.routing.num_experts, case.configured):
                wrong.append(f"layer {case.block:02d}, {case.condition}, {num_tokens:,} tokens: {slots} slots")
            elif one.routing.capacity not in (slots, None):
                wrong.append(f"layer {case.block:02d}, {case.condition}: {one.routing.capacity} slots, not {slots}")
            elif one.routing.capacity is not None and fullest > one.routing.capacity:
                wrong.append(f"layer {case.block:02d}, {case.condition}: {fullest:,} computed in {slots:,} slots")
            if case.block == cases[0].block and one.routing.capacity is not None and case.condition in shown:
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


def _first(case: Case, num_tokens: int) -> Case:
    """The case with its first tokens alone, as one row."""
    (B, S), ids_BS, position_S = case.x_BSD.shape[:2], case.ids_BS, case.position_S
    return replace(
        case,
        x_BSD=case.x_BSD.flatten(0, 1)[None, :num_tokens],
        ids_BS=None if ids_BS is None else ids_BS.flatten()[None, :num_tokens],
        position_S=None if position_S is None else position_S.expand(B, S).flatten()[:num_tokens],
    )


def _is_capacity(capacity: int | None, num_tokens: int, num_experts: int, factor: float | None) -> bool:
    if factor is None or capacity is None:
        return factor is None and capacity is None
    if not 1 <= capacity <= num_tokens:
        return False
    wanted = Fraction(str(factor)) * num_tokens
    large_enough = capacity * num_experts >= wanted or capacity == num_tokens
    return large_enough and (capacity == 1 or (capacity - 1) * num_experts < wanted)
