"""The expert that each token went to first, and the one that came next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from switch_lm.routers.routing import Routing

NOBODY = -1  # where there is no other expert


class FirstChoice(NamedTuple):
    """Facts of T tokens. Of a router with several choices the first is the one that it gave the most."""

    expert_T: Tensor
    gate_T: Tensor  # what its output was multiplied by
    second_T: Tensor  # the most probable other expert; NOBODY of a single one
    second_probability_T: Tensor


def first_choice(routing: Routing) -> FirstChoice:
    """Of every token of one router call."""
    first_T1 = routing.expert_TK[:, :1]
    second_probability_T, second_T = routing.probs_TE.scatter(1, first_T1, -1.0).max(dim=1)
    if routing.probs_TE.shape[1] == 1:  # there is no other
        second_T, second_probability_T = torch.full_like(second_T, NOBODY), torch.zeros_like(second_probability_T)
    return FirstChoice(first_T1.squeeze(1), routing.gate_TK[:, 0], second_T, second_probability_T)
