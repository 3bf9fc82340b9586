"""Every drop order and overflow rule on the same weights: what each leaks, drops and costs."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from switch_lm.certificate.finding import Verdict, leak
from switch_lm.certificate.leaks import MOVED, depends_on_rows, intervene, sees_future
from switch_lm.certificate.scores import future_gap, in_batches
from switch_lm.measure.scoring import character_by_character
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.subject import Gap, Subject, tried
from switch_lm.routers.queueing import DROP_ORDERS

OVERFLOWS = ("drop", "reroute", "passthrough")
SWITCH: dict[str, Any] = {
    "top_k": 1,
    "renormalize_gates": False,
    "selection": "argmax",
    "drop_order": "position",
    "queue_order": "token",
    "overflow": "drop",
    "capacity_group": "batch",
}
BY_ROW = {"capacity_group": "sequence"}
BIAS, NO_LIMIT = "selection bias, by position", "no limit"
DEFAULT_FACTOR = 1.0  # for a model that was trained without a limit


@dataclass(frozen=True)
class Measured:
    """What one policy was measured to do."""

    policy: str
    sees_future: Verdict
    depends_on_rows: Verdict
    by_future: float  # the largest move of a logit, at any capacity tried
    by_rows: float
    without_slot: float  # at the capacity of training, as what follows
    loss: float  # nats per character, as training scores
    gap: Gap  # to scoring character by character
    future: Gap | None  # how much of it the future makes; None: nothing of it can


def policies(subject: Subject) -> dict[str, dict[str, Any]]:
    """Routing rules by name: drop order and overflow, with capacity shared by the batch and by row; then all others."""
    rules = {
        f"{order}, {overflow}{', by row' * bool(group)}": SWITCH | {"drop_order": order, "overflow": overflow} | group
        for group, order, overflow in product(({}, BY_ROW), DROP_ORDERS, OVERFLOWS)
    }
    if subject.model.config.num_experts >= 2:
        second = SWITCH | {"top_k": 2, "queue_order": "choice"}
        rules |= {"top 2, choice order": second, "top 2, choice order, by row": second | BY_ROW}
    return rules | {"sampled, by position": SWITCH | {"selection": "sample"}, BIAS: SWITCH, NO_LIMIT: SWITCH}


def measure(subject: Subject, *, factor: float, say: Say = silent) -> list[Measured]:
    """Each in training without dropout and jitter, with `factor` as its capacity factor."""
    text, result = subject.scored, []
    one_by_one: dict[tuple[int, bool], Tensor] = {}  # the same for all rules that select the same experts
    for name, changes in policies(subject).items():
        say(name, stage=True)
        model = subject.without_noise(**changes)
        if name == BIAS:
            _bias(model)
        limit = None if name == NO_LIMIT else factor
        rule, limited = model.switch_layers[0].rule, limit is not None
        moves = {tight: intervene(model, subject.few, capacity_factor=tight) for tight in tried(limit)}
        by_future, by_rows = torch.tensor([[m.by_future, m.by_rows] for m in moves.values()]).amax(0).tolist()  # or NaN
        together_BS = in_batches(model, text, batch_size=subject.batch_size, capacity_factor=limit)
        selects = (rule.top_k, name == BIAS)
        if selects not in one_by_one:
            one_by_one[selects] = character_by_character(model.eval(), *text)
            model.train()
        known = sees_future(rule, limited=limited, training=True)
        result.append(
            Measured(
                name,
                leak(not by_future <= MOVED, known=known),
                leak(not by_rows <= MOVED, known=depends_on_rows(rule, limited=limited)),
                by_future,
                by_rows,
                moves[limit].without_slot,
                together_BS.double().mean().item(),
                Gap.of(together_BS, one_by_one[selects]),
                future_gap(model, text, batch_size=subject.batch_size, capacity_factor=limit) if known else None,
            )
        )
    return result


def _bias(model: Any) -> None:
    """One bias for each expert, as balance without a loss might have set it (DeepSeek-V3)."""
    draw = torch.Generator().manual_seed(0)
    for layer in model.switch_layers:
        bias_E = 0.1 * torch.rand(layer.num_experts, generator=draw) - 0.05
        layer.selection_bias_E = bias_E.to(layer.w_router_DE.device)
