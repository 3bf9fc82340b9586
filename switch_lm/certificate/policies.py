"""Every drop order and overflow rule on the same weights: what each leaks, drops and costs."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from switch_lm.certificate.finding import Verdict, leak
from switch_lm.certificate.gaps import gap
from switch_lm.certificate.leaks import MOVED, intervene
from switch_lm.certificate.scores import future_gap, in_batches, rounding
from switch_lm.config.families import load
from switch_lm.measure.scoring import character_by_character
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.progress import Say, silent
from switch_lm.probe.subject import Subject, promised, tried
from switch_lm.routers.options import RouterOptions, TopKOptions
from switch_lm.routers.queueing import DROP_ORDERS
from switch_lm.routers.switch import SwitchRouter
from switch_lm.routers.topk import TopKRouter
from switch_lm.stats.intervals import Estimate

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
    by_future: float  # the largest move of a logit, at any capacity tried, as a share of the largest logit
    by_rows: float
    without_slot: float  # at the capacity of training, as what follows
    loss: float  # nats per character, as training scores
    gap: Estimate  # to scoring character by character
    future: Estimate | None  # how much of it the future makes; None: nothing of it can


def refusal(options: RouterOptions) -> str | None:
    """Why a router with such options has no other policies to try; None: it has."""
    if load("router", options.name) in (SwitchRouter, TopKRouter):
        return None
    rule = f"its rules are those of switch and topk, and this router is {options.name}"
    return f"{rule}; leave it out, or give router=switch"


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
    text, tolerance, result = subject.scored, rounding(subject), []
    one_by_one: dict[tuple[int, bool], Tensor] = {}  # the same for all rules that select the same experts
    for name, changes in policies(subject).items():
        say(name, stage=True)
        model = _with_options(subject.without_noise(), changes)
        if name == BIAS:
            _bias(model)
        limit = None if name == NO_LIMIT else factor
        promise = promised(model, training=True, limited=limit is not None)
        rows = subject.unit(promise)
        moves = {tight: intervene(model, subject.few, capacity_factor=tight) for tight in tried(limit)}
        by_future, by_rows = torch.tensor([[m.by_future, m.by_rows] for m in moves.values()]).amax(0).tolist()  # or NaN
        together_BS = in_batches(model, text, batch_size=subject.batch_size, capacity_factor=limit)
        selects = (changes["top_k"], name == BIAS)
        if selects not in one_by_one:
            one_by_one[selects] = character_by_character(model.eval(), *text)
            model.train()
        result.append(
            Measured(
                name,
                leak(not by_future <= MOVED, known=promise.sees_future),
                leak(not by_rows <= MOVED, known=promise.depends_on_rows),
                by_future,
                by_rows,
                moves[limit].without_slot,
                together_BS.double().mean().item(),
                gap(together_BS, one_by_one[selects], rows=rows, rounding=tolerance),
                future_gap(
                    model, text, batch_size=subject.batch_size, capacity_factor=limit, rows=rows, rounding=tolerance
                )
                if promise.sees_future
                else None,
            )
        )
    return result


def _with_options(model: SwitchLM, changes: dict[str, Any]) -> SwitchLM:
    """The model with a new router in each layer, which has the weights and bias of the old one, and other options."""
    for layer in model.switch_layers:
        old, d_model = layer.router, layer.experts.w_in_EDF.shape[1]
        kept = {key: value for key, value in vars(old.options).items() if key != "name"}
        options = TopKOptions(**kept | {"input_dropout": 0.0} | changes)
        layer.router = TopKRouter(options, d_model=d_model, num_experts=layer.num_experts)
        layer.router.w_DE, layer.router.bias_E = old.w_DE, old.bias_E
    return model


def _bias(model: SwitchLM) -> None:
    """One bias for each expert, as balance without a loss might have set it (DeepSeek-V3)."""
    draw = torch.Generator().manual_seed(0)
    for router in model.routers:
        bias_E = 0.1 * torch.rand(router.num_experts, generator=draw) - 0.05
        router.bias_E = bias_E.to(next(router.parameters()).device)
