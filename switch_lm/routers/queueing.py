"""Which choices get an expert's capacity slots: the order in which they queue, and what happens when it is full.

A choice is one (token, rank) pair. Choices have the shape (G, t, K), or flat (G, N): G groups, each with its own
capacity slots, of t tokens with K choices, so that N = t*K here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Queue:
    """Each choice's slot at its expert, kept if it is below the capacity, and the load of each expert. All int64."""

    slot_GN: Tensor  # how many earlier choices of the group have the same expert
    load_GE: Tensor  # how many choices selected each expert, before any is dropped or rerouted


def queue_slots(expert_GN: Tensor, num_experts: int) -> Queue:
    """Numbers the choices of each expert from 0, in the order in which they stand in `expert_GN` (int64, 0 to E - 1).

    This is the exclusive count of Mesh TensorFlow's dispatch, from a stable sort: no tensor has the shape (N, E).
    """
    num_groups, num_choices = expert_GN.shape
    device = expert_GN.device
    if expert_GN.numel() == 1:  # one token, as in generation
        return Queue(torch.zeros_like(expert_GN), (expert_GN == torch.arange(num_experts, device=device)).long())
    short = expert_GN.is_cuda and num_experts < 2**15  # a GPU sorts byte by byte
    sorted_GN, choice_GN = (expert_GN.to(torch.int16) if short else expert_GN).sort(dim=1, stable=True)
    experts_GE = torch.arange(num_experts, device=device, dtype=sorted_GN.dtype).repeat(num_groups, 1)
    first_GE = torch.searchsorted(sorted_GN, experts_GE)
    sorted_slot_GN = torch.arange(num_choices, device=device) - first_GE.gather(1, sorted_GN.long())
    slot_GN = torch.empty_like(sorted_slot_GN).scatter(1, choice_GN, sorted_slot_GN)
    return Queue(slot_GN, first_GE.diff(dim=1, append=first_GE.new_full((num_groups, 1), num_choices)))


def enqueue(
    expert_GtK: Tensor,
    scores_GtE: Tensor,
    *,
    capacity: int,
    drop_order: str,
    overflow: str,
    by_choice: bool,
    training: bool,
) -> tuple[Tensor, Queue]:
    """The expert that computes each choice (G, N), and the queue by the drop order and overflow of a router's options.

    `by_choice`: all first choices queue before all second ones (GShard).
    """
    num_groups, num_tokens, top_k = expert_GtK.shape
    expert_GN, num_experts = expert_GtK.flatten(1), scores_GtE.shape[-1]
    priority_Gt = DROP_ORDERS[drop_order](scores_GtE, training)
    if priority_Gt is None and not by_choice and overflow != "reroute":
        return expert_GN, queue_slots(expert_GN, num_experts)

    if priority_Gt is None:
        priority_Gt = torch.arange(num_tokens, device=expert_GtK.device).expand(num_groups, num_tokens)
    order_GtK = priority_Gt[..., None] * top_k + torch.arange(top_k, device=expert_GtK.device)
    order_GN = (order_GtK.mT if by_choice else order_GtK).flatten(1)
    ordered_GN = expert_GN.gather(1, order_GN)
    if overflow == "reroute":  # top_k is 1: choices are tokens
        scores_GNE = scores_GtE.gather(1, order_GN[..., None].expand_as(scores_GtE))
        load_GE = _one_hot(ordered_GN, num_experts).sum(dim=1)
        ordered_GN, slot_GN = _reroute(ordered_GN, scores_GNE, capacity)
    else:
        queue = queue_slots(ordered_GN, num_experts)
        slot_GN, load_GE = queue.slot_GN, queue.load_GE
    expert_GN = torch.empty_like(ordered_GN).scatter(1, order_GN, ordered_GN)
    return expert_GN, Queue(torch.empty_like(slot_GN).scatter(1, order_GN, slot_GN), load_GE)


def _reroute(expert_GN: Tensor, scores_GNE: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """The expert and slot of each token (G, N): in round r, every token without a slot tries its r-th best expert.

    The best is the selected expert, the others follow by score. A slot that equals the capacity means dropped.
    Source: Switch Transformers, appendix B (No-Token-Left-Behind).
    """
    num_experts = scores_GNE.shape[-1]
    first_GNE = _one_hot(expert_GN, num_experts)
    ranking_GNE = scores_GNE.masked_fill(first_GNE, torch.inf).argsort(dim=-1, descending=True, stable=True)
    slot_GN = torch.full_like(expert_GN, capacity)  # no token has a slot yet
    taken_GE = torch.zeros_like(expert_GN[:, :1]).expand(-1, num_experts)
    for tried_GN in ranking_GNE.unbind(-1):
        waiting_GN = slot_GN >= capacity
        arrivals_GNE = (_one_hot(tried_GN, num_experts) & waiting_GN[..., None]).long().cumsum(dim=1)
        here_GNE = arrivals_GNE - 1 + taken_GE[:, None]
        here_GN = here_GNE.gather(2, tried_GN[..., None]).squeeze(2)
        placed_GN = waiting_GN & (here_GN < capacity)
        expert_GN = torch.where(placed_GN, tried_GN, expert_GN)
        slot_GN = torch.where(placed_GN, here_GN, slot_GN)
        taken_GE = (taken_GE + arrivals_GNE[:, -1]).clamp(max=capacity)
    return expert_GN, slot_GN


def _one_hot(expert_GN: Tensor, num_experts: int) -> Tensor:
    return expert_GN[..., None] == torch.arange(num_experts, device=expert_GN.device)


def _by_position(scores_GtE: Tensor, training: bool) -> None:
    """Row, then position: the only order in which a token's slot does not depend on later tokens."""
    return


def _at_random(scores_GtE: Tensor, training: bool) -> Tensor | None:
    """A random permutation of each group's tokens. In evaluation, where nothing may be random, by position."""
    return torch.rand_like(scores_GtE[..., 0]).argsort(dim=1) if training else None


def _by_probability(scores_GtE: Tensor, training: bool) -> Tensor:
    """The token with the highest score first: batch-prioritised routing (V-MoE, section 4.1)."""
    return scores_GtE.detach().amax(dim=-1).argsort(dim=1, descending=True, stable=True)


# Each returns the tokens of every group in the order in which they queue (G, t), or None for the order of position.
DROP_ORDERS: dict[str, Callable[[Tensor, bool], Tensor | None]] = {
    "position": _by_position,
    "random": _at_random,
    "probability": _by_probability,
}
