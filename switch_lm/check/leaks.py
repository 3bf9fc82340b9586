"""Does a token see its own future, or other rows? Found by intervention: another text there, all else the same."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import torch

from switch_lm.check.expected import depends_on_rows, sees_future
from switch_lm.check.finding import Finding, leak
from switch_lm.check.subject import Subject, Windows, precise, seeded
from switch_lm.model import SwitchLM, SwitchOutput

MOVED = 1e-5  # a logit; by rounding it moves less
CASES = 12  # interventions on each rule at each capacity


@dataclass(frozen=True)
class Moves:
    """What all interventions on one rule came to."""

    by_future: float  # the largest move of a logit at or before t, by later characters of its row
    by_rows: float  # the largest move of a row's logits, by the other rows
    not_placed: float  # mean share of choices that the selected expert did not compute


def intervene(model: SwitchLM, text: Windows, *, capacity_factor: float | EllipsisType | None) -> Moves:
    """In the model's mode, in float64. Capacity, noise and all that is not changed stay the same.

    `text`: its inputs are read, and give each other what is put in their place.
    """
    model, ids_BS = precise(model), text[0]
    other_BS = ids_BS.roll(1, dims=0).roll(1, dims=1)
    draw = torch.Generator().manual_seed(0)
    by_future = by_rows = not_placed = 0.0
    for case in range(CASES):
        row = (len(ids_BS) - 1 - case // 2) % len(ids_BS)  # in order of position the last rows are dropped
        t = int(torch.randint(max(1, ids_BS.shape[1] - 1), (), generator=draw))
        future_BS, rows_BS = ids_BS.clone(), other_BS.clone()
        future_BS[row, t + 1 :] = other_BS[row, t + 1 :]
        rows_BS[row] = ids_BS[row]
        before, future, rows = (
            seeded(model, ids, seed=case, capacity_factor=capacity_factor) for ids in (ids_BS, future_BS, rows_BS)
        )
        by_future = max(by_future, (future.logits - before.logits)[row, : t + 1].abs().max().item())
        by_rows = max(by_rows, (rows.logits - before.logits)[row].abs().max().item())
        not_placed += _not_placed(before) / CASES
    return Moves(by_future, by_rows, not_placed)


def _not_placed(output: SwitchOutput) -> float:
    placed = [routing.kept_TK & (routing.assigned_TK == routing.expert_TK) for routing in output.routings]
    return 1.0 - torch.stack(placed).float().mean().item() if placed else 0.0


def check(subject: Subject) -> list[Finding]:
    """Training's rule at its capacity and at a tight one, then the rule of validation."""
    config = subject.model.config
    training, rule = subject.in_training(), config.rule
    in_training = {factor: intervene(training, subject.few, capacity_factor=factor) for factor in subject.factors}
    factor = config.eval_capacity_factor
    in_evaluation = {factor: intervene(subject.model, subject.few, capacity_factor=...)}  # as the layers have it
    limited, limited_in_evaluation = subject.limited(config.capacity_factor), subject.limited(factor)
    return [
        _future("own future, training", in_training, known=sees_future(rule, limited=limited, training=True)),
        _future(
            "own future, evaluation",
            in_evaluation,
            known=sees_future(rule, limited=limited_in_evaluation, training=False),
        ),
        _rows("other rows, training", in_training, known=depends_on_rows(rule, limited=limited)),
        _rows("other rows, evaluation", in_evaluation, known=depends_on_rows(rule, limited=limited_in_evaluation)),
    ]


def _future(name: str, found: dict[float | None, Moves], *, known: bool) -> Finding:
    moves = {factor: moved.by_future for factor, moved in found.items()}
    seen = max(moves.values()) > MOVED
    meaning = {
        (False, False): "what comes later in a text moves nothing before it",
        (False, True): "this rule can leak later characters, but nothing was seen here",
        (True, True): "who is dropped hangs on later characters: a loss under this rule is not one of prediction",
        (True, False): "later characters move earlier logits, which this rule must not let them",
    }[seen, known]
    return Finding(name, leak(seen, known=known), _measured(moves, found), meaning, _figures(moves, found))


def _rows(name: str, found: dict[float | None, Moves], *, known: bool) -> Finding:
    moves = {factor: moved.by_rows for factor, moved in found.items()}
    seen = max(moves.values()) > MOVED
    meaning = {
        (False, False): "a text gives the same beside any others",
        (False, True): "rows share their experts' places, but nothing was seen here",
        (True, True): "rows share their experts' places: what a text gives hangs on those beside it",
        (True, False): "other rows move a row's logits, which this rule must not let them",
    }[seen, known]
    return Finding(name, leak(seen, known=known), _measured(moves, found), meaning, _figures(moves, found))


def named(factor: float | None) -> str:
    return "no limit" if factor is None else f"factor {factor:g}"


def _measured(moves: dict[float | None, float], found: dict[float | None, Moves]) -> str:
    """The largest move of a logit at each capacity, with what had no place there."""
    return "logit moves " + ", ".join(
        f"{move:.2g} at {named(factor)}{f' ({found[factor].not_placed:.1%} not placed)' * (factor is not None)}"
        for factor, move in moves.items()
    )


def _figures(moves: dict[float | None, float], found: dict[float | None, Moves]) -> dict[str, float]:
    return {f"move, {named(factor)}": moves[factor] for factor in found} | {
        f"not placed, {named(factor)}": moved.not_placed for factor, moved in found.items()
    }
