"""Which experts each token selects, and which of these choices are kept.

Tensor names end in their dimensions, everywhere in this package: B rows, S positions, T = B*S tokens, K choices per
token, N = T*K choices, E experts, C capacity, G groups, D d_model, F d_ff, H heads, W head width, V vocabulary,
L Switch layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.routers.options import RoutingRule, expert_capacity
from switch_lm.routers.queueing import enqueue, queue_slots

__all__ = ["Routing", "RoutingRule", "expert_capacity", "route"]


@dataclass(frozen=True)
class Routing:
    """What one Switch layer decided for T tokens. Equation numbers are those of Switch Transformers.

    Which experts are selected, assigned and kept, and with which gate, are four facts. Each has its own field.
    """

    logits_TE: Tensor  # the router's output, float32, with gradient
    probs_TE: Tensor  # softmax of the logits over all experts, with gradient (eq. 1)
    expert_TK: Tensor  # the selected experts, before anything is dropped; int64
    assigned_TK: Tensor  # the experts that compute: the selected ones, unless overflow was rerouted; int64
    gate_TK: Tensor  # the factor of each assigned expert's output, float32, with gradient (eq. 2)
    slot_TK: Tensor  # how many earlier choices of its group have the same assigned expert; int64
    load_E: Tensor  # how many choices selected each expert, before dropping; int64, no gradient
    capacity: int | None  # slots that each expert has for each group (eq. 3); None: no limit
    num_groups: int = 1  # 1: the batch is one group; B: each row is a group
    spared_TK: Tensor | None = None  # False where a choice is dropped at random; None: no choice is

    @property
    def keeps_all(self) -> bool:
        """Whether no choice can be dropped, whatever the router does."""
        return self.capacity is None and self.spared_TK is None

    @property
    def kept_TK(self) -> Tensor:
        """Which choices are computed, bool: exactly the first C of each expert and group, less those dropped at random.

        A choice that is dropped at random leaves its slot empty: the other choices keep what they have.
        """
        if self.capacity is None:
            return torch.ones_like(self.slot_TK, dtype=torch.bool) if self.spared_TK is None else self.spared_TK
        fits_TK = self.slot_TK < self.capacity
        return fits_TK if self.spared_TK is None else fits_TK & self.spared_TK

    @property
    def kept_E(self) -> Tensor:
        """How many choices each expert computes, int64."""
        if self.keeps_all:
            return self.load_E
        chosen_TKE = self.assigned_TK[..., None] == torch.arange(self.load_E.numel(), device=self.load_E.device)
        return (chosen_TKE & self.kept_TK[..., None]).sum(dim=(0, 1))

    @property
    def fraction_E(self) -> Tensor:
        """f_i, the share of choices that selected expert i, float32, no gradient (eq. 5)."""
        return self.load_E.float() / self.expert_TK.numel()

    @property
    def mean_prob_E(self) -> Tensor:
        """P_i, the mean probability of expert i over all tokens, float32, with gradient (eq. 6)."""
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
    """Selects each token's experts and gives the choices their slots, from the router's logits (float32).

    The T tokens are `num_groups` groups of equal length, one after the other. Each expert has `capacity` slots for each
    group; None is dropless. `training` turns on sampling, random orders and random drops, as the rule demands.
    Source: Switch Transformers, section 2.1 and eq. 1 to 3.
    """
    probs_TE = logits_TE.softmax(dim=-1)  # eq. 1
    expert_TK = select(logits_TE, probs_TE, rule=rule, training=training, selection_bias_E=selection_bias_E)
    if capacity is None:
        num_groups, assigned_TK = 1, expert_TK
        queue = queue_slots(expert_TK.view(1, -1), logits_TE.shape[-1])
    else:
        expert_GtK, probs_GtE = (x.unflatten(0, (num_groups, -1)) for x in (expert_TK, probs_TE))
        assigned_GN, queue = enqueue(expert_GtK, probs_GtE, capacity=capacity, rule=rule, training=training)
        assigned_TK = assigned_GN.view_as(expert_TK)
    gate_TK = gates(probs_TE.gather(1, assigned_TK), rule)
    spared_TK = torch.rand_like(gate_TK) >= rule.random_drop_rate if training and rule.random_drop_rate > 0.0 else None
    slot_TK, load_E = queue.slot_GN.view_as(expert_TK), queue.load_GE.sum(dim=0)
    return Routing(
        logits_TE, probs_TE, expert_TK, assigned_TK, gate_TK, slot_TK, load_E, capacity, num_groups, spared_TK
    )


def select(
    logits_TE: Tensor, probs_TE: Tensor, *, rule: RoutingRule, training: bool, selection_bias_E: Tensor | None = None
) -> Tensor:
    """The `top_k` experts of each token (T, K), int64: the most probable, or drawn without replacement in training.

    A selection bias (E,) changes which experts are selected and nothing else (DeepSeek-V3, section 2.1.2).
    """
    score_TE = probs_TE.detach()
    if rule.selection == "sample" and training:
        gumbel_TE = -torch.empty_like(logits_TE).exponential_().log()
        score_TE = logits_TE.detach() + gumbel_TE  # the largest of these is a draw from the softmax
    elif selection_bias_E is not None:
        score_TE = score_TE + selection_bias_E
    return score_TE.argmax(dim=-1, keepdim=True) if rule.top_k == 1 else score_TE.topk(rule.top_k, dim=-1).indices


def gates(prob_TK: Tensor, rule: RoutingRule) -> Tensor:
    """The factor of each expert's output (T, K), from the experts' probabilities (T, K) (eq. 2).

    By default it is p itself, through which alone the language loss reaches the router: normalised over a single
    selected expert, it would be a constant 1.
    """
    if rule.renormalize_gates:
        return prob_TK / prob_TK.sum(dim=-1, keepdim=True)
    if rule.gate_scale == "straight_through":  # p / p.detach(), and 1 where p underflows to 0
        return 1.0 + (prob_TK - prob_TK.detach()) / prob_TK.detach().clamp(min=1e-20)
    return prob_TK
