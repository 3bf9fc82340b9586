"""Does a token see its own future, or other rows? What its router promises, and what interventions show."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, Verdict, leak, when
from switch_lm.model.transformer import SwitchLM, SwitchOutput
from switch_lm.probe.subject import Subject, Windows, seeded, share, tried, used, without_slot
from switch_lm.routers.base import Promise

MOVED = 1e-5  # of the largest logit; by rounding one moves less
CASES = 12  # interventions on each rule at each capacity
SEEDS = 3  # of the noise


@dataclass(frozen=True)
class Moves:
    """The results of all interventions on one rule."""

    by_future: float  # how far later characters of a row move a logit at or before t: a share of the largest logit
    by_rows: float  # the same of a row's logits, by the other rows
    without_slot: float  # mean share of assignments that the selected expert did not compute


def intervene(model: SwitchLM, text: Windows, *, capacity_factor: float | EllipsisType | None) -> Moves:
    """In the model's mode, in float64. Capacity, noise and all that is not changed stay the same.

    The inputs of `text` are read, and each is replaced by parts of another one.
    """
    model, ids_BS = deepcopy(model).double(), text[0]  # where rounding is not taken for a leak
    for router in model.routers:
        router.float()  # as they promise
    other_BS = ids_BS.roll(1, dims=0).roll(1, dims=1)
    draw = torch.Generator().manual_seed(0)
    unchanged = [seeded(model, ids_BS, seed=seed, capacity_factor=capacity_factor) for seed in range(SEEDS)]
    by_future, by_rows, logits = list[Tensor](), list[Tensor](), [output.logits for output in unchanged]
    for case in range(CASES):
        row = (len(ids_BS) - 1 - case // 2) % len(ids_BS)  # in order of position the last rows are dropped
        t = int(torch.randint(max(1, ids_BS.shape[1] - 1), (), generator=draw))
        future_BS, rows_BS = ids_BS.clone(), other_BS.clone()
        future_BS[row, t + 1 :] = other_BS[row, t + 1 :]
        rows_BS[row] = ids_BS[row]
        seed = case % SEEDS
        before = unchanged[seed]
        future, rows = (seeded(model, ids, seed=seed, capacity_factor=capacity_factor) for ids in (future_BS, rows_BS))
        by_future.append((future.logits - before.logits)[row, : t + 1])
        by_rows.append((rows.logits - before.logits)[row])
    return Moves(share(by_future, logits), share(by_rows, logits), _lost(unchanged))


def _lost(outputs: Sequence[SwitchOutput]) -> float:
    """The mean share of assignments without a slot."""
    of_outputs = [[without_slot(routing)[used(routing)] for routing in output.routings] for output in outputs]
    lost = [torch.cat(of_layers) for of_layers in of_outputs if of_layers]
    return sum(lost_N.sum().item() / max(1, lost_N.numel()) for lost_N in lost) / max(1, len(lost))


# What it means, by verdict; of a PASS also where the rule is known to leak, and nothing was seen.
FUTURE = {
    (Verdict.PASS, False): "what comes later in a text moves nothing before it",
    (Verdict.PASS, True): "this rule can leak later characters, but nothing was seen here",
    (Verdict.LEAKS, True): (
        "which experts compute depends on later characters: a loss under this rule is not one of prediction"
    ),
    (Verdict.FAIL, False): "later characters move earlier logits, which this rule must not allow",
}
ROWS = {
    (Verdict.PASS, False): "a text gives the same beside any others",
    (Verdict.PASS, True): "rows share their experts' places, but nothing was seen here",
    (Verdict.LEAKS, True): "rows share their experts' places: what a text gives depends on those beside it",
    (Verdict.FAIL, False): "other rows move a row's logits, which this rule must not allow",
}
ALONE = dict.fromkeys(ROWS, "the text has a single window: there are no other rows")


def check(subject: Subject) -> list[Finding]:
    """Training's rule at its capacity, at tighter ones and at none, where nothing may leak; then validation's."""
    config, training = subject.model.config, deepcopy(subject.model).train()
    limit = subject.limit(config.capacity_factor, training=True)
    factors = [None] if limit is None else [*tried(limit), None]
    unlimited = deepcopy(training)
    for layer in unlimited.switch_layers:  # its noise follows a token's index among all, which other tokens move
        layer.experts.dropout.rate = 0.0
    in_training = {
        factor: intervene(
            unlimited if factor is None else training,
            subject.few,
            capacity_factor=config.capacity_factor if limit is None else factor,
        )
        for factor in factors
    }
    factor = subject.limit(config.eval_capacity_factor, training=False)
    in_evaluation = {factor: intervene(subject.model, subject.few, capacity_factor=...)}  # as the layers have it
    of_rows, findings = ROWS if len(subject.few[0]) > 1 else ALONE, list[Finding]()
    for leaks, meanings, by in (("own future", FUTURE, "by_future"), ("other rows", of_rows, "by_rows")):
        for where, moves in (("training", in_training), ("evaluation", in_evaluation)):
            promises = {
                factor: subject.promise(training=where == "training", limited=factor is not None) for factor in moves
            }
            findings.append(_finding(f"{leaks}, {where}", meanings, moves, by, promises))
    return findings


def _finding(
    name: str,
    meanings: Mapping[tuple[Verdict, bool], str],
    moves: Mapping[float | None, Moves],
    by: str,
    promises: Mapping[float | None, Promise],
) -> Finding:
    """`by`: which field of `moves`; both by capacity factor."""
    field = "sees_future" if by == "by_future" else "depends_on_rows"
    known = {factor: bool(getattr(promise, field)) for factor, promise in promises.items()}
    largest_move = {factor: float(getattr(moved, by)) for factor, moved in moves.items()}
    verdicts = [leak(not move <= MOVED, known=known[factor]) for factor, move in largest_move.items()]  # a NaN moved
    worst = max(verdicts, key=list(Verdict).index)
    measured = ", ".join(
        f"{move:.2g} at {named(factor)}{f' ({moves[factor].without_slot:.1%} without a slot)' * (factor is not None)}"
        for factor, move in largest_move.items()
    )
    figures = {f"move, {named(factor)}": move for factor, move in largest_move.items()}
    figures |= {f"without a slot, {named(factor)}": moved.without_slot for factor, moved in moves.items()}
    meaning = meanings[worst, worst != Verdict.FAIL and any(known.values())]
    state = next(iter(promises.values())).state
    measured = f"logit moves, as shares of the largest logit: {measured}"
    return Finding(name, worst, measured, when(state, meaning), figures, field)


def named(factor: float | None) -> str:
    return "no limit" if factor is None else f"factor {factor:g}"
