"""Which rules let a token depend on later tokens of its row, or on other rows: tested by intervention.

Whether a token is dropped is part of the output. Two texts that differ only after t, or only in another row, go through
the same model in training, with the same shape (and so the same capacity) and the same noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from leak_table import BY_ROW, TABLE, TIGHT, Verdict
from small_models import SIZES, lm_of
from torch import Tensor

from switch_lm.model.transformer import SwitchLM, SwitchOutput
from switch_lm.routers.options import BalanceOptions

VOCAB, B, S = 11, 3, SIZES["context_length"]
LEAKS = 1e-5  # float32: a logit may change this much through rounding
CASES = 25  # random interventions per rule; a rule that leaks does so in several of them


def model_of(options: dict[str, Any]) -> SwitchLM:
    """Two Switch layers in training, without noise other than the rule's own; a selection bias gets random values."""
    torch.manual_seed(0)
    model = lm_of(VOCAB, **{"init_scale": 2.0} | options)
    for router in model.routers:
        if router.bias_E is not None:
            router.bias_E.uniform_(-0.2, 0.2)
    return model.train()


class Effects(NamedTuple):
    """The effects of all interventions on a rule."""

    of_future: float = 0.0  # the largest change of a logit at or before t, by later tokens of its row
    of_rows: float = 0.0  # the largest change of a row's logits, by the other rows
    not_placed: float = 0.0  # the mean share of choices that the selected expert did not compute


@torch.no_grad()
def interventions(model: SwitchLM) -> Effects:
    effects = Effects()
    for case in range(CASES):
        draw = torch.Generator().manual_seed(case)
        ids_BS, new_BS = torch.randint(VOCAB, (2, B, S), generator=draw).unbind()
        row, t = (int(torch.randint(n, (), generator=draw)) for n in (B, S - 1))
        future_BS, rows_BS = ids_BS.clone(), new_BS.clone()
        future_BS[row, t + 1 :] = new_BS[row, t + 1 :]
        rows_BS[row] = ids_BS[row]
        before, future, rows = (with_noise(model, ids, seed=case) for ids in (ids_BS, future_BS, rows_BS))
        effects = Effects(
            max(effects.of_future, (future.logits - before.logits)[row, : t + 1].abs().max().item()),
            max(effects.of_rows, (rows.logits - before.logits)[row].abs().max().item()),
            effects.not_placed + not_placed(before) / CASES,
        )
    return effects


def with_noise(model: SwitchLM, ids_BS: Tensor, *, seed: int) -> SwitchOutput:
    torch.manual_seed(seed)
    return model(ids_BS)


def not_placed(output: SwitchOutput) -> float:
    placed = [routing.kept_TK & (routing.assigned_TK == routing.expert_TK) for routing in output.routings]
    return 1.0 - torch.stack(placed).float().mean().item()


@pytest.mark.parametrize("rule", TABLE)
def test_a_token_depends_on_its_future_and_on_other_rows_exactly_where_the_table_says_so(rule: str) -> None:
    options, verdict = TABLE[rule]
    effects = interventions(model_of(options))
    assert Verdict(effects.of_future > LEAKS, effects.of_rows > LEAKS) == verdict
    drops = options["capacity_factor"] is not None or "random_drop_rate" in options
    assert (effects.not_placed > 0.2) if drops else (effects.not_placed == 0.0)  # the rule was under pressure


def test_a_capacity_that_follows_the_length_changes_even_the_rule_by_row() -> None:
    """Why texts keep their length here: a shorter prefix has another capacity and drops other tokens."""
    model = model_of(TIGHT | BY_ROW)
    ids_BS = torch.randint(VOCAB, (B, S))
    with torch.no_grad():
        whole, prefix = model(ids_BS), model(ids_BS[:, :6])
    assert whole.routings[0].capacity == 3 and prefix.routings[0].capacity == 2
    assert (whole.logits[:, :6] - prefix.logits).abs().max() > LEAKS


# --- The promise of the dropless default of evaluation: prefix, batch and cache do not matter

DROPLESS: dict[str, dict[str, Any]] = {
    "one choice": {},
    "two choices": {"top_k": 2},
    "two choices in choice order": {"top_k": 2, "queue_order": "choice"},
    "renormalised": {"top_k": 2, "renormalize_gates": True},
    "selection bias": {"balance": BalanceOptions(name="sign")},
    "shared expert": {"shared_expert": True},
    "by row": BY_ROW,
    "random, which is for training": {"drop_order": "random"},
    "sampled, which is for training": {"selection": "sample"},
}


@pytest.mark.parametrize("options", DROPLESS.values(), ids=DROPLESS.keys())
@torch.no_grad()
def test_in_evaluation_neither_prefix_nor_batch_size_nor_cache_matters(options: dict[str, Any]) -> None:
    model = model_of(options | {"capacity_factor": 0.75}).eval()
    ids_BS = torch.randint(VOCAB, (5, S), generator=torch.Generator().manual_seed(1))
    whole = model(ids_BS).logits
    by_rows = torch.cat([model(rows).logits for rows in ids_BS.split([1, 3, 1])])
    prefixes = torch.stack([model(ids_BS[:, : t + 1]).logits[:, -1] for t in range(S)], dim=1)
    kept = model.new_cache()
    steps = torch.cat([model(part, cache=kept).logits for part in ids_BS.split([4, 1, 1, 3, 1, 1, 1], dim=1)], dim=1)
    for logits in (by_rows, prefixes, steps):
        assert torch.allclose(logits, whole, atol=1e-4)
