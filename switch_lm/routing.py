"""Which expert each token goes to, and whether it fits.

Dimensions, here and everywhere: B rows, S positions, T = B*S tokens, K choices a token, N = T*K choices, E experts,
C capacity, D d_model, F d_ff, H heads, W head width, V vocabulary, L Switch layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from switch_lm.capacity import expert_capacity

__all__ = ["Routing", "choose", "expert_capacity", "jitter", "queue_slots", "route"]


@dataclass(frozen=True)
class Routing:
    """What one Switch layer decided for T tokens. Selected, kept and gate are three facts and stay apart."""

    probs_TE: Tensor  # float32, softmax over all experts, with gradient (eq. 1)
    expert_TK: Tensor  # the experts selected, before anything is dropped
    gate_TK: Tensor  # float32, what each chosen expert's output is multiplied by, with gradient (eq. 2)
    slot_TK: Tensor  # how many earlier choices went to the same expert
    load_E: Tensor  # choices that selected each expert, before dropping; no gradient
    capacity: int | None  # places each expert has; None: no limit

    @property
    def kept_TK(self) -> Tensor:
        """Which choices found a place: exactly the first C of each expert (Mesh TensorFlow's exclusive count)."""
        if self.capacity is None:
            return torch.ones_like(self.slot_TK, dtype=torch.bool)
        return self.slot_TK < self.capacity

    @property
    def kept_E(self) -> Tensor:
        """Choices that each expert computed."""
        return self.load_E if self.capacity is None else self.load_E.clamp(max=self.capacity)

    @property
    def fraction_E(self) -> Tensor:
        """f_i, the share of choices that selected expert i (eq. 5)."""
        return self.load_E.float() / self.expert_TK.numel()

    @property
    def mean_prob_E(self) -> Tensor:
        """P_i, the mean probability of expert i over all tokens, with gradient (eq. 6)."""
        return self.probs_TE.mean(dim=0)


def jitter(x_TD: Tensor, epsilon: float) -> Tensor:
    """The router's input times U(1 - epsilon, 1 + epsilon); a copy, so that experts get the clean input (app. C)."""
    return x_TD * (1.0 - epsilon + 2.0 * epsilon * torch.rand_like(x_TD))


def choose(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `top_k` most probable experts: probabilities (T, E), experts (T, K) and their gates (T, K) (eq. 1 and 2).

    The softmax is over all experts and the gate is the raw probability: that is the router's only gradient from the
    language loss, and it would vanish (a constant 1) were it normalised over the one expert chosen.
    """
    probs_TE = logits_TE.softmax(dim=-1)
    gate_TK, expert_TK = probs_TE.max(dim=-1, keepdim=True) if top_k == 1 else probs_TE.topk(top_k, dim=-1)
    return probs_TE, expert_TK, gate_TK


def queue_slots(expert_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """For each choice the number of earlier choices of the same expert (N), and the choices of each expert (E)."""
    chosen_NE = expert_N[:, None] == torch.arange(num_experts, device=expert_N.device)
    count_NE = chosen_NE.to(torch.int32).cumsum(dim=0, dtype=torch.int32)
    slot_N = count_NE.gather(1, expert_N[:, None]).squeeze(1) - 1
    return slot_N, count_NE[-1]


def route(logits_TE: Tensor, *, capacity: int | None, top_k: int = 1) -> Routing:
    """Sends each token to its most probable experts; places are taken in order of row, position and rank."""
    probs_TE, expert_TK, gate_TK = choose(logits_TE, top_k)
    slot_N, load_E = queue_slots(expert_TK.flatten(), logits_TE.shape[-1])
    return Routing(probs_TE, expert_TK, gate_TK, slot_N.view_as(expert_TK), load_E, capacity)
