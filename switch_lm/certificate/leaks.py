"""Does a token see its own future, or other rows? Found by intervention: another text there, all else the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.expected import depends_on_rows, sees_future
from switch_lm.certificate.finding import Finding, Verdict, leak
from switch_lm.model.transformer import SwitchLM, SwitchOutput
from switch_lm.probe.subject import Subject, Windows, largest, precise, seeded

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
    by_future, by_rows, not_placed = list[Tensor](), list[Tensor](), 0.0
    for case in range(CASES):
        row = (len(ids_BS) - 1 - case // 2) % len(ids_BS)  # in order of position the last rows are dropped
        t = int(torch.randint(max(1, ids_BS.shape[1] - 1), (), generator=draw))
        future_BS, rows_BS = ids_BS.clone(), other_BS.clone()
        future_BS[row, t + 1 :] = other_BS[row, t + 1 :]
        rows_BS[row] = ids_BS[row]
        before, future, rows = (
            seeded(model, ids, seed=case, capacity_factor=capacity_factor) for ids in (ids_BS, future_BS, rows_BS)
        )
        by_future.append((future.logits - before.logits)[row, : t + 1])
        by_rows.append((rows.logits - before.logits)[row])
        not_placed += _not_placed(before) / CASES
    return Moves(largest(by_future), largest(by_rows), not_placed)


def _not_placed(output: SwitchOutput) -> float:
    placed = [routing.kept_TK & (routing.assigned_TK == routing.expert_TK) for routing in output.routings]
    return 1.0 - torch.stack(placed).float().mean().item() if placed else 0.0


def check(subject: Subject) -> list[Finding]:
    """Training's rule at its capacity, at tighter ones and at none, where nothing may leak; then validation's."""
    config, training = subject.model.config, subject.in_training()
    factors = [*subject.factors, None] if subject.limited(config.capacity_factor) else [None]
    unlimited = subject.in_training()
    for layer in unlimited.switch_layers:  # its noise follows the place of a token among all, which others move
        layer.experts.dropout.rate = 0.0
    in_training = {
        factor: intervene(unlimited if factor is None else training, subject.few, capacity_factor=factor)
        for factor in factors
    }
    in_evaluation = {
        config.eval_capacity_factor: intervene(subject.model, subject.few, capacity_factor=...)  # as the layers have it
    }
    found = []
    for where, moves in (("training", in_training), ("evaluation", in_evaluation)):
        known = {
            factor: (
                sees_future(config.rule, limited=subject.limited(factor), training=where == "training"),
                depends_on_rows(config.rule, limited=subject.limited(factor)),
            )
            for factor in moves
        }
        future = {factor: moved.by_future for factor, moved in moves.items()}
        rows = {factor: moved.by_rows for factor, moved in moves.items()}
        of_future, of_rows = ({factor: pair[i] for factor, pair in known.items()} for i in range(2))
        found.append(_finding(f"own future, {where}", FUTURE, future, of_future, moves))
        found.append(_finding(f"other rows, {where}", ROWS, rows, of_rows, moves))
    if len(subject.few[0]) == 1:
        alone = "the text has a single window: there are no other rows"
        found = [replace(one, meaning=alone) if one.check.startswith("other") else one for one in found]
    return sorted(found, key=lambda one: one.check.startswith("other"))


# What it means, by verdict; of a PASS also where the rule is known to leak, and nothing was seen.
FUTURE = {
    (Verdict.PASS, False): "what comes later in a text moves nothing before it",
    (Verdict.PASS, True): "this rule can leak later characters, but nothing was seen here",
    (
        Verdict.LEAKS,
        True,
    ): "who is dropped depends on later characters: a loss under this rule is not one of prediction",
    (Verdict.FAIL, False): "later characters move earlier logits, which this rule must not allow",
}
ROWS = {
    (Verdict.PASS, False): "a text gives the same beside any others",
    (Verdict.PASS, True): "rows share their experts' places, but nothing was seen here",
    (Verdict.LEAKS, True): "rows share their experts' places: what a text gives depends on those beside it",
    (Verdict.FAIL, False): "other rows move a row's logits, which this rule must not allow",
}


def _finding(
    name: str,
    meanings: dict[tuple[Verdict, bool], str],
    moves: dict[float | None, float],
    known: dict[float | None, bool],
    found: dict[float | None, Moves],
) -> Finding:
    verdicts = [leak(not move <= MOVED, known=known[factor]) for factor, move in moves.items()]  # a NaN has moved
    worst = max(verdicts, key=list(Verdict).index)
    expected = any(known.values()) if worst != Verdict.FAIL else False
    return Finding(name, worst, _measured(moves, found), meanings[worst, expected], _figures(moves, found))


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
