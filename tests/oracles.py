"""What a Switch layer must compute, written twice more: one token after the other, and as the paper's one-hot einsums.

Slow and meant to be obviously right: written from the papers, and sharing nothing with the layer but its weights. The
router's scores are one matrix product in both, so that rounding cannot part two tokens that are tied.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from hypothesis import settings
from torch import Tensor

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.options import TopKOptions

REPEATABLE = settings(
    deadline=None, derandomize=True, database=None
)  # the same cases everywhere, on a busy machine too


@dataclass(frozen=True)
class Slow:
    """What a layer adds to the residual (B, S, D), with gradient, and which choices were kept (T, K)."""

    y_BSD: Tensor
    kept_TK: Tensor


def places_of_an_expert(num_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Equation 3, rounded up as if the factor's decimal digits were all of it; at least 1, at most all tokens."""
    return min(num_tokens, max(1, ceil(Fraction(repr(capacity_factor)) * num_tokens / num_experts)))


def token_by_token(
    module: SwitchFeedForward,
    x_BSD: Tensor,
    capacity_factor: float | None,
    *,
    selected_TK: Tensor | None = None,
    spared_TK: Tensor | None = None,
) -> Slow:
    """The layer as a loop over groups, tokens and choices; noise on the router's input and in the experts must be off.

    A random drop order is drawn as the layer does, one `torch.rand` a token, and is no other draw: seed torch alike
    before either call and they agree. `selected_TK` stands in for the choice where that was drawn, too, and
    `spared_TK` for which choices were not dropped at random: one that was keeps its slot and computes nothing.
    """
    B, S, D = x_BSD.shape
    x_TD = x_BSD.reshape(B * S, D)
    p_TE = torch.softmax(x_TD.float() @ torch.as_tensor(module.router.w_DE), dim=-1)
    selected = _choose(module, p_TE) if selected_TK is None else selected_TK.tolist()
    group_size = S if module.router.options.capacity_group == "sequence" else B * S
    draws = (
        torch.rand(B * S // group_size, group_size)
        if module.router.options.drop_order == "random" and module.training
        else 0
    )

    rows: list[Tensor] = []
    kept: list[list[bool]] = []
    for start in range(0, B * S, group_size):
        tokens = list(range(start, start + group_size))
        queue = _queue(module, tokens, p_TE, draws)
        if capacity_factor is None:
            computes = {(t, k): selected[t][k] for t in tokens for k in range(module.router.options.top_k)}
        else:
            capacity = places_of_an_expert(group_size, module.num_experts, capacity_factor)
            take_slots = _reroute if module.router.options.overflow == "reroute" else _fill
            computes = take_slots(module, queue, selected, p_TE, capacity)
        if spared_TK is not None:
            computes = {(t, k): expert for (t, k), expert in computes.items() if spared_TK[t, k]}
        rows += [_output(module, x_TD[t], p_TE[t], selected[t], computes, t) for t in tokens]
        kept += [[(t, k) in computes for k in range(module.router.options.top_k)] for t in tokens]
    y_BSD = torch.stack(rows).view(B, S, D)
    return Slow(y_BSD if module.shared is None else y_BSD + module.shared(x_BSD), torch.tensor(kept))


def _options(module: SwitchFeedForward) -> TopKOptions:
    """Those of `topk`, which has all that the loop knows of."""
    options = module.router.options
    assert isinstance(options, TopKOptions)
    return options


Computes = dict[tuple[int, int], int]  # of each choice (token, rank) that has a slot, the expert


def _choose(module: SwitchFeedForward, p_TE: Tensor) -> list[list[int]]:
    """The most probable expert, of equals the first; for several the order that torch gives to equals."""
    bias_E = torch.zeros(module.num_experts) if module.router.bias_E is None else module.router.bias_E
    if module.router.options.top_k == 1:
        scores = [(p_E + bias_E).tolist() for p_E in p_TE.detach()]
        return [[score.index(max(score))] for score in scores]
    return [torch.topk(p_E + bias_E, module.router.options.top_k).indices.tolist() for p_E in p_TE.detach()]


def _queue(module: SwitchFeedForward, tokens: list[int], p_TE: Tensor, draws: Tensor | int) -> list[tuple[int, int]]:
    """A group's choices (token, rank) in the order in which they are served."""
    if module.router.options.drop_order == "probability":
        tokens = sorted(tokens, key=lambda t: -p_TE[t].max().item())  # sorted keeps the order of equals
    elif isinstance(draws, Tensor):
        drawn = draws.flatten().tolist()
        tokens = sorted(tokens, key=lambda t: drawn[t])
    ranks = range(module.router.options.top_k)
    if _options(module).queue_order == "choice":
        return [(t, k) for k in ranks for t in tokens]
    return [(t, k) for t in tokens for k in ranks]


def _fill(
    module: SwitchFeedForward, queue: list[tuple[int, int]], selected: list[list[int]], p_TE: Tensor, capacity: int
) -> Computes:
    """Whoever comes to a full expert is dropped."""
    taken = [0] * module.num_experts
    computes = {}
    for t, k in queue:
        expert = selected[t][k]
        if taken[expert] < capacity:
            taken[expert] += 1
            computes[t, k] = expert
    return computes


def _reroute(
    module: SwitchFeedForward, queue: list[tuple[int, int]], selected: list[list[int]], p_TE: Tensor, capacity: int
) -> Computes:
    """Round by round, those without a slot try the next of their experts: the selected one, then by probability."""
    taken = [0] * module.num_experts
    wishes = {t: _wishes(selected[t][0], p_TE[t].tolist()) for t, _ in queue}
    computes: Computes = {}
    for turn in range(module.num_experts):
        for t, k in queue:
            expert = wishes[t][turn]
            if (t, k) not in computes and taken[expert] < capacity:
                taken[expert] += 1
                computes[t, k] = expert
    return computes


def _wishes(first: int, p: list[float]) -> list[int]:
    others = [expert for expert in range(len(p)) if expert != first]
    return [first, *sorted(others, key=lambda expert: -p[expert])]


def _output(
    module: SwitchFeedForward, x_D: Tensor, p_E: Tensor, selected: list[int], computes: Computes, t: int
) -> Tensor:
    """The sum of gate x expert(x) over the kept choices of one token (eq. 2)."""
    experts = [computes.get((t, k), selected[k]) for k in range(len(selected))]
    probs = [p_E[expert] for expert in experts]
    y_D = 0.0 * x_D  # has a gradient, also where all is dropped
    for k, expert in enumerate(experts):
        gate = probs[k]
        if _options(module).renormalize_gates:
            gate = probs[k] / torch.stack(probs).sum()
        elif _options(module).gate_scale == "straight_through":
            gate = 1.0 + (probs[k].log() - probs[k].log().detach())
        if (t, k) in computes:
            hidden_F = module.experts.activation(x_D @ module.experts.w_in_EDF[expert])
            y_D = y_D + gate * (hidden_F @ module.experts.w_out_EFD[expert])
        elif module.router.options.overflow == "passthrough":
            y_D = y_D + gate * x_D
    return y_D


def einsum_form(module: SwitchFeedForward, x_BSD: Tensor, capacity_factor: float | None) -> Tensor:
    """The layer as the pseudo code of Switch Transformers, appendix F, has it (B, S, D), for K raw gates.

    In position order, token-major; what overflows is dropped. `combine` is (T, E, C), the gate at the slot of each
    choice. The paper counts slots from 1 and keeps those below C, one too few: here they count from 0.
    """
    B, S, D = x_BSD.shape
    groups = x_BSD if module.router.options.capacity_group == "sequence" else x_BSD.reshape(1, B * S, D)
    return torch.stack([_einsum_group(module, x_tD, capacity_factor) for x_tD in groups]).view(B, S, D)


def _einsum_group(module: SwitchFeedForward, x_tD: Tensor, capacity_factor: float | None) -> Tensor:
    num_tokens, K, E = x_tD.shape[0], module.router.options.top_k, module.num_experts
    C = num_tokens if capacity_factor is None else places_of_an_expert(num_tokens, E, capacity_factor)
    p_tE = torch.softmax(x_tD @ torch.as_tensor(module.router.w_DE), dim=-1)
    index_tK = p_tE.argmax(dim=-1, keepdim=True) if K == 1 else torch.topk(p_tE, K).indices
    gate_tK = p_tE.gather(1, index_tK)
    mask_tKE = torch.nn.functional.one_hot(index_tK, E).float()
    mask_NE = mask_tKE.view(num_tokens * K, E)
    before_NE = (mask_NE.cumsum(dim=0) - mask_NE) * mask_NE  # exclusive
    mask_NE = mask_NE * (before_NE < C)
    slot_NEC = torch.nn.functional.one_hot(before_NE.long().clamp(max=C - 1), C) * mask_NE[..., None]
    slot_tKEC = slot_NEC.view(num_tokens, K, E, C)
    dispatch_tEC = slot_tKEC.sum(dim=1)
    combine_tEC = torch.einsum("tk,tkec->tec", gate_tK, slot_tKEC)
    x_ECD = torch.einsum("tec,td->ecd", dispatch_tEC, x_tD)
    hidden_ECF = module.experts.activation(torch.einsum("ecd,edf->ecf", x_ECD, module.experts.w_in_EDF))
    y_ECD = torch.einsum("ecf,efd->ecd", hidden_ECF, module.experts.w_out_EFD)
    return torch.einsum("ecd,tec->td", y_ECD, combine_tEC)
