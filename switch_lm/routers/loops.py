"""The oracles of this package's routers: plain loops over tokens, each written from its paper.

They import nothing from the routers that they judge. The scores are one matrix product in both, so that rounding cannot
part two tokens that are tied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from switch_lm.routers.oracles import Expected


def softmax_choice(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`switch` and `topk`: the most probable experts, of equals the first, and slots by the options."""
    probs_TE = torch.softmax(x_TD.float() @ weights["w_DE"], dim=-1)
    scores_TE = probs_TE.detach() + weights["bias_E"] if "bias_E" in weights else probs_TE.detach()
    best = [largest(scores, options.top_k) for scores in scores_TE]
    return Expected.queued(
        drawn or best,
        probs_TE,
        options,
        scores_TE=scores_TE,
        position_T=position_T,
        capacity=capacity,
        num_groups=num_groups,
        training=training,
        drawn=drawn,
    )


def sigmoid_choice(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`sigmoid`: the experts with the largest s + b; the gate is s, or s over the sum of a token's chosen ones."""
    score_TE = torch.sigmoid(x_TD.float() @ weights["w_DE"])
    moved_TE = score_TE.detach() + weights["bias_E"] if "bias_E" in weights else score_TE.detach()
    expected = Expected.queued(
        [largest(moved, options.top_k) for moved in moved_TE],
        score_TE,
        options,
        scores_TE=moved_TE,
        position_T=position_T,
        capacity=capacity,
        num_groups=num_groups,
        training=training,
    )
    gate_N = expected.gate_N
    if options.top_k > 1:
        gate_N = torch.cat([gates / gates.sum().clamp(min=1e-20) for gates in gate_N.split(options.top_k)])
    shares = [scores / scores.sum().clamp(min=1e-20) for scores in score_TE]
    return replace(expected, gate_N=gate_N, probs_TE=torch.stack(shares))


def fixed_by_character(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`hash`: the expert that its table has for the character, with gate 1."""
    table = weights["expert_V"].tolist()
    selected = [[table[i]] for i in ids_T.tolist()]
    one_hot_TE = torch.zeros(len(selected), len(weights["one_hot_EE"]), device=x_TD.device)
    for t, (expert,) in enumerate(selected):
        one_hot_TE[t, expert] = 1.0
    return Expected.queued(selected, one_hot_TE, options, capacity=capacity, num_groups=num_groups, training=training)


def uniform_choice(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`uniform`: what was drawn, or in evaluation a hash of id and position; gates are 1, and each p is 1 / E."""
    num_experts = len(weights["even_E"])
    if drawn is None:
        pairs = zip(ids_T.tolist(), position_T.tolist(), strict=True)
        drawn = [[_mixed(i, t) % num_experts] for i, t in pairs]
    even_TE = torch.full((len(x_TD), num_experts), 1.0 / num_experts, device=x_TD.device)
    selected = [experts[0] for experts in drawn]
    selected_TE = torch.eye(num_experts, device=x_TD.device)[selected]  # by even scores any expert would be right
    expected = Expected.queued(
        drawn,
        even_TE,
        options,
        scores_TE=selected_TE,
        capacity=capacity,
        num_groups=num_groups,
        training=training,
        drawn=drawn,
    )
    return replace(expected, gate_N=torch.ones_like(expected.gate_N))


def _mixed(character: int, position: int) -> int:
    """31 bits, all of which depend on both."""
    h = (2654435761 * character + 2246822507 * position + 1) % 2**31
    h = (h ^ h >> 15) * 739982445 % 2**31
    h = (h ^ h >> 15) * 695872825 % 2**31
    return h ^ h >> 13


def chosen_by_experts(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`expert_choice`: in training with a capacity each expert's C most probable tokens of a group, else a cut-off."""
    p_TE = torch.softmax(x_TD.float() @ weights["w_DE"], dim=-1)
    if capacity is None or not training:
        return _above(p_TE, weights["cutoff_E"].tolist(), p_TE)
    size, columns = len(p_TE) // num_groups, p_TE.T.tolist()
    pairs = []
    for start in range(0, len(p_TE), size):
        for e, column in enumerate(columns):
            best = sorted(range(start, start + size), key=lambda t: -column[t])
            pairs += [(t, e) for t in best[:capacity]]
    return _listed(sorted(pairs), p_TE, p_TE)


def above_cutoffs(
    x_TD: Tensor,
    ids_T: Tensor,
    weights: Mapping[str, Tensor],
    options: Any,
    *,
    position_T: Tensor,
    capacity: int | None,
    num_groups: int,
    training: bool,
    drawn: Sequence[Sequence[int]] | None,
) -> Expected:
    """`threshold`: every expert whose cut-off s exceeds; while it warms up, that of the batch."""
    score_TE = torch.sigmoid(x_TD.float() @ weights["w_DE"])
    probs_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
    cutoff = weights["cutoff_E"].tolist()
    if training and int(weights["steps"]) < int(weights["warmup"]):
        number = -(-options.top_k * len(score_TE) // len(cutoff))
        ordered = [sorted(column, reverse=True) for column in score_TE.T.tolist()]
        cutoff = [column[number] if number < len(column) else -1.0 for column in ordered]
    return _above(score_TE, cutoff, probs_TE)


def _above(score_TE: Tensor, cutoff: Sequence[float], probs_TE: Tensor) -> Expected:
    """Every pair of a token and an expert whose cut-off its score exceeds."""
    rows = score_TE.tolist()
    return _listed(
        [(t, e) for t, row in enumerate(rows) for e, s in enumerate(row) if s > cutoff[e]], score_TE, probs_TE
    )


def _listed(pairs: Sequence[tuple[int, int]], score_TE: Tensor, probs_TE: Tensor) -> Expected:
    """Pairs of a token and an expert, all kept; the gate is the score."""
    token, expert = [t for t, _ in pairs], [e for _, e in pairs]
    return Expected(
        token=token,
        selected=expert,
        assigned=expert,
        kept=[True] * len(pairs),
        gate_N=score_TE[token, expert],
        scores_TE=score_TE.detach(),
        probs_TE=probs_TE,
    )


def largest(scores_E: Tensor, number: int) -> list[int]:
    """The experts with the largest scores: a single one as the first of equals, several in the order that torch has."""
    if number == 1:
        scores = scores_E.tolist()
        return [scores.index(max(scores))]
    chosen: list[int] = torch.topk(scores_E, number).indices.tolist()
    return chosen
