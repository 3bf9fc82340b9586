"""What a router decided: a flat list of assignments, each of a token to a capacity slot of an expert.

Tensor names end in their dimensions, everywhere in this package: B rows, S positions, T = B*S tokens, K choices per
token, N assignments, E experts, C capacity, G groups, D d_model, F d_ff, H heads, W head width, V vocabulary, L Switch
layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from switch_lm.routers.queueing import queue_slots

LISTS = ("token_N", "expert_N", "assigned_N", "slot_N", "gate_N", "kept_N")


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The assignments of T tokens to E experts, in a list whose length N follows from the shapes alone.

    Floating values are float32, or float64 in a model of that type.
    Which experts are selected, assigned and kept, and with which gate, are four facts. Each has its own field.
    Equation numbers are those of Switch Transformers. `Routing.listed` and `Router.token_choice` make one.
    """

    token_N: Tensor  # int64; the token of each assignment
    expert_N: Tensor  # int64; the expert that it selected, before anything is dropped
    assigned_N: Tensor  # int64; the expert that computes: the selected one, unless overflow was rerouted
    slot_N: Tensor  # int64; how many earlier assignments of its group have the same assigned expert
    gate_N: Tensor  # floating, as the next three, with gradient; the factor of the assigned expert's output (eq. 2)
    kept_N: Tensor  # bool; whether it is computed
    load_E: Tensor  # int64, no gradient; how many assignments selected each expert, before dropping
    scores_TE: Tensor  # with gradient; what experts are selected by
    probs_TE: Tensor  # with gradient; the scores as shares of 1 per token (eq. 1)
    logits_TE: Tensor | None = None  # with gradient; x W_r; None: the router has no weights
    balanced_E: Tensor | None = None  # int64; the loads that f is taken from, of several processes; None: `load_E`
    balanced_rows: int = 1  # the balance and importance loss are means over so many runs of consecutive tokens
    used_N: Tensor | None = None  # bool; False: an entry of the list that is no assignment; None: all are
    capacity: int | None = None  # slots that each expert has for each group (eq. 3); None: no limit
    num_groups: int = 1  # groups of tokens with slots of their own; T / G consecutive tokens each
    choices_per_token: int | None = None  # K: assignment t*K + k is the k-th of token t; None: any number per token
    keeps_all: bool = False  # whether no assignment can be dropped or unused, whatever the router does
    passes_dropped: bool = False  # a dropped assignment adds gate x the layer's input; otherwise 0

    @classmethod
    def listed(
        cls,
        *,
        token_N: Tensor,
        expert_N: Tensor,
        gate_N: Tensor,
        scores_TE: Tensor,
        probs_TE: Tensor | None = None,
        logits_TE: Tensor | None = None,
        used_N: Tensor | None = None,
        capacity: int | None = None,
        num_groups: int = 1,
    ) -> Self:
        """Any list of assignments, in which a token has from none to all experts, and each of them at most once.

        The first `capacity` of each expert and group, in the order of the list, are kept; None keeps all. `used_N`
        marks the entries that are assignments. `probs_TE`: by default each token's scores divided by their sum.
        """
        num_tokens, num_experts = scores_TE.shape
        if capacity is None:
            num_groups = 1
        num_queues = num_groups * num_experts  # of which each group has one per expert
        queue_N = expert_N if num_groups == 1 else token_N // (num_tokens // num_groups) * num_experts + expert_N
        queue_N = queue_N if used_N is None else torch.where(used_N, queue_N, num_queues)  # those have their own
        queue = queue_slots(queue_N[None], num_queues + 1)
        slot_N, load_E = queue.slot_GN[0], queue.load_GE[0, :num_queues].view(num_groups, num_experts).sum(dim=0)
        kept_N = torch.ones_like(slot_N, dtype=torch.bool) if used_N is None else used_N
        return cls(
            token_N=token_N,
            expert_N=expert_N,
            assigned_N=expert_N,
            slot_N=slot_N,
            gate_N=gate_N,
            kept_N=kept_N if capacity is None else kept_N & (slot_N < capacity),
            load_E=load_E,
            scores_TE=scores_TE,
            probs_TE=scores_TE / scores_TE.sum(dim=-1, keepdim=True).clamp(min=1e-20) if probs_TE is None else probs_TE,
            logits_TE=logits_TE,
            used_N=used_N,
            capacity=capacity,
            num_groups=num_groups,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.scores_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.load_E.numel()

    @property
    def num_assignments(self) -> Tensor:
        """How many assignments there are, before dropping; 0-d int64."""
        return self.load_E.sum()

    @property
    def kept_E(self) -> Tensor:
        """How many assignments each expert computes, int64."""
        if self.keeps_all or (self.capacity is None and self.choices_per_token is None):
            return self.load_E
        chosen_NE = self.assigned_N[:, None] == torch.arange(self.num_experts, device=self.load_E.device)
        return (chosen_NE & self.kept_N[:, None]).sum(dim=0)

    @property
    def dropped_E(self) -> Tensor:
        """How many assignments that selected each expert no expert computes, int64."""
        dropped_N = ~self.kept_N if self.used_N is None else ~self.kept_N & self.used_N
        return torch.zeros_like(self.load_E).index_add(0, self.expert_N, dropped_N.to(self.load_E.dtype))

    @property
    def fraction_E(self) -> Tensor:
        """f_i, the share of assignments that selected expert i, in the type of P, no gradient (eq. 5)."""
        load_E = self.load_E if self.balanced_E is None else self.balanced_E
        if self.choices_per_token is None or self.balanced_E is not None:  # there may be none at all
            return load_E.to(self.probs_TE.dtype) / load_E.sum().clamp(min=1)
        return load_E.to(self.probs_TE.dtype) / self.token_N.numel()

    @property
    def mean_prob_E(self) -> Tensor:
        """P_i, the mean probability of expert i over all tokens, with gradient (eq. 6)."""
        return self.probs_TE.mean(dim=0)

    @property
    def expert_TK(self) -> Tensor:
        """The experts that each token selected. This view and the next four: ValueError unless each token has K."""
        return self._by_token(self.expert_N)

    @property
    def assigned_TK(self) -> Tensor:
        return self._by_token(self.assigned_N)

    @property
    def gate_TK(self) -> Tensor:
        return self._by_token(self.gate_N)

    @property
    def slot_TK(self) -> Tensor:
        return self._by_token(self.slot_N)

    @property
    def kept_TK(self) -> Tensor:
        return self._by_token(self.kept_N)

    def _by_token(self, values_N: Tensor) -> Tensor:
        if self.choices_per_token is None:
            raise ValueError("this router gives a token any number of experts: read token_N and expert_N, not a view")
        return values_N.view(-1, self.choices_per_token)

    def first_TM(self, most: int) -> Tensor:
        """The assignments of each token, in the order of the list, as indices (T, M); N where it has fewer, int64."""
        N = self.token_N.numel()
        if self.choices_per_token is not None:
            index_TK = torch.arange(N, device=self.token_N.device).view(-1, self.choices_per_token)[:, :most]
            return torch.nn.functional.pad(index_TK, (0, most - index_TK.shape[1]), value=N)
        token_N = self.token_N if self.used_N is None else torch.where(self.used_N, self.token_N, self.num_tokens)
        rank_N = queue_slots(token_N[None], self.num_tokens + 1).slot_GN[0]
        place_N = torch.where(rank_N < most, token_N * most + rank_N, self.num_tokens * most)
        place_N = place_N.clamp(max=self.num_tokens * most)  # one past the end for those that have no place
        table = place_N.new_full((self.num_tokens * most + 1,), N)
        table = table.scatter(0, place_N, torch.arange(N, device=token_N.device))
        return table[:-1].view(self.num_tokens, most)

    def compacted(self) -> Self:
        """The same without the entries that are no assignment. How many are left is read from the device."""
        if self.used_N is None:
            return self
        lists: dict[str, Any] = {name: getattr(self, name).masked_select(self.used_N) for name in LISTS}
        return replace(self, **lists, used_N=None, keeps_all=self.capacity is None)

    def detached(self) -> Self:
        """The same without gradients, so that nothing keeps the graph of a step alive."""
        return self._with_each(Tensor.detach)

    def copied(self) -> Self:
        """The same in memory of its own."""
        return self._with_each(Tensor.clone)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(x) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **changed)


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, in which routers and losses compute at least; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
