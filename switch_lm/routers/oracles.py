"""What routers should do, as plain loops over tokens: the judge of `check` and of the tests.

What a loop gives, and the slots that follow from what it selects; the loops of this package's families are in `loops`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a router should give for T tokens: one entry per assignment, in the order of token, then rank."""

    token: Sequence[int]
    selected: Sequence[int]  # experts
    assigned: Sequence[int]  # the experts that compute; the selected ones, unless overflow is rerouted
    kept: Sequence[bool] | None  # None: who is dropped is drawn at random
    gate_N: Tensor  # with a gradient where x and the weights have one
    scores_TE: Tensor  # by which experts are selected, a bias included: of nearly equal ones either may be
    probs_TE: Tensor  # of which the balance loss takes the mean
    passes_dropped: bool = False  # a dropped assignment adds gate x the layer's input; otherwise 0

    @classmethod
    def queued(
        cls,
        selected: Sequence[Sequence[int]],
        probs_TE: Tensor,
        options: Any,
        *,
        scores_TE: Tensor | None = None,
        position_T: Tensor | None = None,
        capacity: int | None,
        num_groups: int,
        training: bool,
        drawn: Sequence[Sequence[int]] | None = None,
    ) -> Self:
        """What follows from the experts that each token selected: slots and gates, by the options of every router.

        `probs_TE` (T, E), of which gates are the assigned experts', with a gradient; `scores_TE`, if experts are
        selected by something else. All others as in `Oracle`.
        """
        num_tokens, num_experts = probs_TE.shape
        size = num_tokens // num_groups
        computes: dict[tuple[int, int], int] = {}
        for start in range(0, num_tokens, size):
            tokens = range(start, start + size)
            if capacity is None:
                computes |= {(t, k): expert for t in tokens for k, expert in enumerate(selected[t])}
            else:
                queue = _queue(tokens, probs_TE, selected, options)
                take_slots = _reroute if options.overflow == "reroute" else _fill
                computes |= take_slots(queue, selected, probs_TE, num_experts, capacity)
        every = [(t, k) for t in range(num_tokens) for k in range(len(selected[t]))]
        token, assigned = [t for t, _ in every], [computes.get((t, k), selected[t][k]) for t, k in every]
        at_random = options.drop_order == "random" and training and capacity is not None
        return cls(
            token=token,
            selected=[selected[t][k] for t, k in every],
            assigned=assigned,
            kept=None if at_random else [choice in computes for choice in every],
            gate_N=_gates(probs_TE[token, assigned], torch.tensor(token, device=probs_TE.device), options),
            scores_TE=probs_TE.detach() if scores_TE is None else scores_TE,
            probs_TE=probs_TE,
            passes_dropped=options.overflow == "passthrough",
        )


class Oracle(Protocol):
    """A function of the router's clean input (T, D), the ids (T), its weights and buffers by name, and its options.

    `position_T`, `capacity`, `num_groups`: as for `Router.forward`. `training`: whether it routes as in training, with
    all noise on its input off. `drawn`: the experts of each token, if its promise is that it draws them.
    """

    def __call__(
        self,
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
    ) -> Expected: ...


def _queue(
    tokens: Sequence[int], probs_TE: Tensor, selected: Sequence[Sequence[int]], options: Any
) -> list[tuple[int, int]]:
    """A group's choices (token, rank) in the order in which they are served."""
    if options.drop_order == "probability":
        surest = probs_TE.amax(dim=-1).tolist()
        tokens = sorted(tokens, key=lambda t: -surest[t])  # sorted keeps the order of equals
    if getattr(options, "queue_order", "token") == "choice":
        return [(t, k) for k in range(options.top_k) for t in tokens]
    return [(t, k) for t in tokens for k in range(len(selected[t]))]


def _fill(
    queue: list[tuple[int, int]], selected: Sequence[Sequence[int]], probs_TE: Tensor, num_experts: int, capacity: int
) -> dict[tuple[int, int], int]:
    """Whoever comes to a full expert is dropped (eq. 3)."""
    taken, computes = [0] * num_experts, {}
    for t, k in queue:
        expert = selected[t][k]
        if taken[expert] < capacity:
            taken[expert] += 1
            computes[t, k] = expert
    return computes


def _reroute(
    queue: list[tuple[int, int]], selected: Sequence[Sequence[int]], probs_TE: Tensor, num_experts: int, capacity: int
) -> dict[tuple[int, int], int]:
    """Round by round, those without a slot try the next of their experts: the selected one, then by probability."""
    taken: list[int] = [0] * num_experts
    computes: dict[tuple[int, int], int] = {}
    wishes = {}
    for t, _ in queue:
        p, first = probs_TE[t].tolist(), selected[t][0]
        wishes[t] = [first, *sorted((e for e in range(num_experts) if e != first), key=lambda e: -p[e])]
    for turn in range(num_experts):
        for t, k in queue:
            expert = wishes[t][turn]
            if (t, k) not in computes and taken[expert] < capacity:
                taken[expert] += 1
                computes[t, k] = expert
    return computes


def _gates(prob_N: Tensor, token_N: Tensor, options: Any) -> Tensor:
    """Eq. 2, renormalised over a token's choices, or p / p.detach(): 1 even where p underflows to 0."""
    if getattr(options, "renormalize_gates", False):
        sum_T = prob_N.new_zeros(int(token_N.max()) + 1).index_add(0, token_N, prob_N)
        return prob_N / sum_T[token_N]
    if getattr(options, "gate_scale", "probability") == "straight_through":
        fixed_N = prob_N.detach()
        return 1.0 + (prob_N - fixed_N) / fixed_N.clamp(min=1e-20)
    return prob_N
