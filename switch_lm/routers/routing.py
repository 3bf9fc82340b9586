"""Which expert each token goes to, and whether it fits.

Dimensions, here and everywhere: B rows, S positions, T = B*S tokens, K choices a token, N = T*K choices, E experts,
C capacity, D d_model, F d_ff, H heads, W head width, V vocabulary, L Switch layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.routers.options import RoutingRule, expert_capacity
from switch_lm.routers.queueing import enqueue, queue_slots

__all__ = ["Routing", "RoutingRule", "expert_capacity", "route"]


@dataclass(frozen=True)
class Routing:
    """What one Switch layer decided for T tokens. Selected, kept and gate are three facts and stay apart."""

    logits_TE: Tensor  # float32, of the router
    probs_TE: Tensor  # their softmax over all experts, with gradient (eq. 1)
    expert_TK: Tensor  # the experts selected, before anything is dropped
    assigned_TK: Tensor  # the experts that compute: those selected, unless overflow was rerouted
    gate_TK: Tensor  # float32, what each assigned expert's output is multiplied by, with gradient (eq. 2)
    slot_TK: Tensor  # how many earlier choices of its group took the same expert
    load_E: Tensor  # choices that selected each expert, before dropping; no gradient
    capacity: int | None  # places each expert has for each group; None: no limit
    num_groups: int = 1  # the batch is one group, or each sequence its own
    spared_TK: Tensor | None = None  # False where a choice is dropped at random; None: none is

    @property
    def keeps_all(self) -> bool:
        """Whether nothing can be dropped, whatever the router does."""
        return self.capacity is None and self.spared_TK is None

    @property
    def kept_TK(self) -> Tensor:
        """Which choices found a place: exactly the first C of each expert (Mesh TensorFlow's exclusive count).

        A choice dropped at random loses its place, and no other gets it: as in the layer without this option.
        """
        if self.capacity is None:
            return torch.ones_like(self.slot_TK, dtype=torch.bool) if self.spared_TK is None else self.spared_TK
        found_TK = self.slot_TK < self.capacity
        return found_TK if self.spared_TK is None else found_TK & self.spared_TK

    @property
    def kept_E(self) -> Tensor:
        """Choices that each expert computed."""
        if self.keeps_all:
            return self.load_E
        chosen_TKE = self.assigned_TK[..., None] == torch.arange(self.load_E.numel(), device=self.load_E.device)
        return (chosen_TKE & self.kept_TK[..., None]).sum(dim=(0, 1))

    @property
    def fraction_E(self) -> Tensor:
        """f_i, the share of choices that selected expert i (eq. 5)."""
        return self.load_E.float() / self.expert_TK.numel()

    @property
    def mean_prob_E(self) -> Tensor:
        """P_i, the mean probability of expert i over all tokens, with gradient (eq. 6)."""
        return self.probs_TE.mean(dim=0)


def route(
    logits_TE: Tensor,
    *,
    capacity: int | None,
    rule: RoutingRule = RoutingRule(),  # noqa: B008  frozen
    num_groups: int = 1,
    training: bool = False,
    selection_bias_E: Tensor | None = None,
) -> Routing:
    """Selects each token's experts and lets the choices take their places.

    The T tokens are `num_groups` runs of equal length, and each expert has `capacity` places for every one of them.
    """
    num_experts = logits_TE.shape[-1]
    probs_TE = logits_TE.softmax(dim=-1)  # eq. 1
    expert_TK = select(logits_TE, probs_TE, rule=rule, training=training, selection_bias_E=selection_bias_E)
    if capacity is None:
        num_groups, assigned_TK = 1, expert_TK
        queue = queue_slots(expert_TK.view(1, -1), num_experts)
        slot_TK, load_E = queue.slot_GN.view_as(expert_TK), queue.load_GE[0]
    else:
        expert_GtK, probs_GtE = (x.unflatten(0, (num_groups, -1)) for x in (expert_TK, probs_TE))
        queued = enqueue(expert_GtK, probs_GtE, capacity=capacity, rule=rule, training=training)
        assigned_TK, slot_TK = queued.expert_GtK.flatten(0, 1), queued.slot_GtK.flatten(0, 1)
        load_E = queued.load_GE.sum(dim=0)
    gate_TK = gates(probs_TE.gather(1, assigned_TK), rule)
    spared_TK = torch.rand_like(gate_TK) >= rule.random_drop_rate if training and rule.random_drop_rate > 0.0 else None
    return Routing(
        logits_TE, probs_TE, expert_TK, assigned_TK, gate_TK, slot_TK, load_E, capacity, num_groups, spared_TK
    )


def select(
    logits_TE: Tensor, probs_TE: Tensor, *, rule: RoutingRule, training: bool, selection_bias_E: Tensor | None = None
) -> Tensor:
    """The `top_k` experts of each token (T, K): the most probable ones, or in training drawn without replacement.

    A selection bias moves the choice and nothing else (DeepSeek-V3, section 2.1.2).
    """
    score_TE = probs_TE.detach()
    if rule.selection == "sample" and training:
        gumbel_TE = -torch.empty_like(logits_TE).exponential_().log()
        score_TE = logits_TE.detach() + gumbel_TE  # the largest of these is a draw from the softmax
    elif selection_bias_E is not None:
        score_TE = score_TE + selection_bias_E
    return score_TE.argmax(dim=-1, keepdim=True) if rule.top_k == 1 else score_TE.topk(rule.top_k, dim=-1).indices


def gates(prob_TK: Tensor, rule: RoutingRule) -> Tensor:
    """What each chosen expert's output is multiplied by, from its probability (eq. 2).

    By default that is the raw p, the router's only gradient from the language loss: normalised over one chosen expert
    it would be a constant 1.
    """
    if rule.renormalize_gates:
        return prob_TK / prob_TK.sum(dim=-1, keepdim=True)
    if rule.gate_scale == "straight_through":  # p / p.detach(), and 1 for a second choice whose p underflows to 0 too
        return 1.0 + (prob_TK - prob_TK.detach()) / prob_TK.detach().clamp(min=1e-20)
    return prob_TK
