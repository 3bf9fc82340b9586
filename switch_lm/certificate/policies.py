"""Every drop order and overflow rule on the same weights: what each leaks, drops and costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from switch_lm.certificate.certify import Say
from switch_lm.certificate.expected import depends_on_rows, sees_future
from switch_lm.certificate.finding import Verdict, leak
from switch_lm.certificate.leaks import MOVED, intervene
from switch_lm.certificate.scores import future_gap, in_batches
from switch_lm.measure.scoring import character_by_character
from switch_lm.probe.subject import Gap, Subject, tried
from switch_lm.routers.queueing import DROP_ORDERS

OVERFLOWS = ("drop", "reroute", "passthrough")
BY_ROW = {"capacity_group": "sequence"}
DEFAULT_FACTOR = 1.0  # of a model that was trained without a limit


@dataclass(frozen=True)
class Policy:
    """A routing rule, as changes to Switch's own."""

    name: str
    changes: dict[str, Any]
    limited: bool = True


@dataclass(frozen=True)
class Measured:
    """What one policy was found to do."""

    policy: str
    sees_future: Verdict
    depends_on_rows: Verdict
    by_future: float  # the largest move of a logit, at any capacity tried
    by_rows: float
    not_placed: float  # at the capacity of training, as what follows
    loss: float  # nats per character, as training scores
    gap: Gap  # to scoring character by character
    future: Gap | None  # what of it the future makes; None: nothing of it can

    def as_plain(self) -> dict[str, Any]:
        return asdict(self) | {
            "sees_future": str(self.sees_future),
            "depends_on_rows": str(self.depends_on_rows),
        }


def policies(subject: Subject) -> list[Policy]:
    """By drop order and overflow, with places shared by the batch and by row; then the rules beside them."""
    switch: dict[str, Any] = {"top_k": 1, "renormalize_gates": False, "selection": "argmax", "queue_order": "token"}
    second = switch | {"drop_order": "position", "overflow": "drop", "top_k": 2, "queue_order": "choice"}
    orders = [
        Policy(
            f"{order}, {overflow}{', by row' * bool(group)}",
            switch | {"drop_order": order, "overflow": overflow, "capacity_group": "batch"} | group,
        )
        for group, order, overflow in product(({}, BY_ROW), DROP_ORDERS, OVERFLOWS)
    ]
    plain = switch | {"drop_order": "position", "overflow": "drop", "capacity_group": "batch"}
    two = [
        Policy("top 2, choice order", second | {"capacity_group": "batch"}),
        Policy("top 2, choice order, by row", second | BY_ROW),
    ]
    return [
        *orders,
        *(two if subject.model.config.num_experts >= 2 else []),
        Policy("sampled, by position", plain | {"selection": "sample"}),
        Policy("selection bias, by position", plain),
        Policy("no limit", plain, limited=False),
    ]


def factor_of(subject: Subject) -> float:
    """The capacity that the policies are compared at: that of training."""
    return subject.model.config.capacity_factor or DEFAULT_FACTOR


def measure(subject: Subject, *, factor: float, say: Say = lambda _: None) -> list[Measured]:
    """Each in training without dropout and jitter."""
    text, found = subject.scored, []
    one_by_one: dict[tuple[int, bool], Tensor] = {}  # the same for all rules that select the same experts
    for policy in policies(subject):
        say(policy.name)
        model = subject.without_noise(**policy.changes)
        if "bias" in policy.name:
            _bias(model)
        limit = factor if policy.limited else None
        rule = model.switch_layers[0].rule
        moves = {tight: intervene(model, subject.few, capacity_factor=tight) for tight in tried(limit)}
        by_future, by_rows = (
            torch.tensor([getattr(m, name) for m in moves.values()]).max().item() for name in ("by_future", "by_rows")
        )  # a NaN stays one
        together_BS = in_batches(model, text, batch_size=subject.batch_size, capacity_factor=limit)
        selects = (rule.top_k, "bias" in policy.name)
        if selects not in one_by_one:
            one_by_one[selects] = character_by_character(model.eval(), *text)
            model.train()
        known = sees_future(rule, limited=policy.limited, training=True)
        found.append(
            Measured(
                policy.name,
                leak(not by_future <= MOVED, known=known),
                leak(not by_rows <= MOVED, known=depends_on_rows(rule, limited=policy.limited)),
                by_future,
                by_rows,
                moves[limit].not_placed,
                together_BS.double().mean().item(),
                Gap.of(together_BS, one_by_one[selects]),
                future_gap(model, text, batch_size=subject.batch_size, capacity_factor=limit) if known else None,
            )
        )
    return found


def _bias(model: Any) -> None:
    """One bias for each expert, as balance without a loss might have set it (DeepSeek-V3)."""
    draw = torch.Generator().manual_seed(0)
    for layer in model.switch_layers:
        bias_E = 0.1 * torch.rand(layer.num_experts, generator=draw) - 0.05
        layer.selection_bias_E = bias_E.to(layer.w_router_DE.device)
