"""Is a score the same in one pass, in other batches, with the cache and a second time? What do differences cost?"""

from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, Verdict, judged, leak, when
from switch_lm.certificate.gaps import equal, figures, gap, measured, plus_minus, unseen
from switch_lm.certificate.leaks import named
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import Subject, Windows, largest, noise, seeded, share
from switch_lm.stats.intervals import Estimate

SAME = 1e-4  # of the largest logit, float32: products of other shapes round differently
ROUNDING = 1e-5  # of the largest logit, in nats: what rounding may change of a mean loss
POSITIONS = 4  # in each window, at which its future is taken away


def check(subject: Subject) -> list[Finding]:
    one_by_one_BS = character_by_character(subject.model, *subject.scored)
    return [
        _batch_size(subject),
        _cache(subject),
        _randomness(subject),
        _gap_in_evaluation(subject, one_by_one_BS),
        _gap_in_training(subject, one_by_one_BS),
    ]


def rounding(subject: Subject) -> float:
    """Nats per character that rounding may change; of a model with small logits as of one with logits of size 1."""
    return ROUNDING * max(1.0, largest([seeded(subject.model, subject.few[0], seed=0).logits]))


def _batch_size(subject: Subject) -> Finding:
    """Rows together, one by one, and in unequal parts."""
    model, ids_BS = subject.model, subject.few[0]
    factor = subject.limit(model.config.eval_capacity_factor, training=False)
    together = seeded(model, ids_BS, seed=0).logits
    parts = [torch.cat([seeded(model, rows, seed=0).logits for rows in ids_BS.split(size)]) for size in (1, 3)]
    move = share([part - together for part in parts], [together])
    known, same = subject.promise(training=False, limited=factor is not None).depends_on_rows, move <= SAME
    meaning = (
        "a validation loss does not depend on the batch size"
        if same
        else f"validation has a capacity ({named(factor)}), which a batch's rows share"
        if known
        else "rows of one batch change each other's scores"
    )
    verdict = leak(not same, known=known and move == move)
    measured = f"logit moves {move:.2g} of the largest between 1, 3 and {len(ids_BS)} rows per batch"
    return Finding(
        "batch size, evaluation", verdict, measured, meaning, {"move": move}, "depends_on_rows" * (move == move)
    )


def _cache(subject: Subject) -> Finding:
    """Generation through the cache, in pieces of several lengths, and one text alone, as it is written."""
    model, ids_BS = subject.model, subject.few[0]
    whole_BSV = seeded(model, ids_BS, seed=0, capacity_factor=None).logits
    pieces = _in_pieces(model, ids_BS, (1, 3, 1, 5)) - whole_BSV
    alone = _in_pieces(model, ids_BS[:1], (1,)) - whole_BSV[:1]
    move = share([pieces, alone], [whole_BSV])
    return judged(
        "cache",
        move <= SAME,
        f"logit moves {move:.2g} of the largest between pieces, single characters and one pass",
        {"move": move},
        good="generation gives what one pass gives",
        bad="generation does not give what one pass gives",
    )


@torch.inference_mode()
def _in_pieces(model: SwitchLM, ids_BS: Tensor, sizes: tuple[int, ...]) -> Tensor:
    cache, pieces = model.new_cache(), list[Tensor]()
    while (start := cache[0].length) < ids_BS.shape[1]:
        part_BS = ids_BS[:, start : start + sizes[len(pieces) % len(sizes)]]
        pieces.append(model(part_BS, cache=cache, capacity_factor=None).logits)
    return torch.cat(pieces, dim=1)


def _randomness(subject: Subject) -> Finding:
    first, second = (seeded(subject.model, subject.few[0], seed=seed).logits for seed in (1, 2))
    move = share([first - second], [first])
    return judged(
        "no randomness, evaluation",
        move == 0,
        f"logit moves {move:.2g} of the largest between two seeds",
        {"move": move},
        good="no dropout, jitter or random drop is on",
        bad="something random is on in evaluation",
    )


def _gap_in_evaluation(subject: Subject, one_by_one_BS: Tensor) -> Finding:
    """As validation scores, less as generation does.

    Without a capacity both are the same by promise: any difference beyond rounding is a FAIL, whatever its interval.
    With one it LEAKS where the interval excludes 0; where it does not, or where there is none, it was not seen. Then
    a mean near 0 does not make both the same: every window must be.
    """
    name, tolerance = "loss gap, evaluation", rounding(subject)
    factor = subject.limit(subject.model.config.eval_capacity_factor, training=False)
    limited = factor is not None
    rows = subject.unit(subject.promise(training=False, limited=limited))
    together_BS = in_batches(subject.model, subject.scored, batch_size=subject.batch_size, capacity_factor=...)
    one = gap(together_BS, one_by_one_BS, rows=rows, rounding=tolerance)
    words, numbers = measured(one, rows=rows), figures(one)
    if equal(one) if limited else abs(one.mean) <= tolerance:
        return Finding(name, Verdict.PASS, words, "a validation loss is what generation would pay", numbers)
    if not limited or one.mean != one.mean:
        return Finding(name, Verdict.FAIL, words, "a window as a whole is not scored as generation would", numbers)
    drops = f"validation drops (at {named(factor)}) what generation, one character at a time, does not"
    seen = one.resolved()
    meaning = drops if seen else f"{drops}, but that is not seen to change the loss: {unseen(one)}"
    return Finding(name, leak(seen, known=True), words, meaning, numbers)


def _gap_in_training(subject: Subject, one_by_one_BS: Tensor) -> Finding:
    """As training scores, without its noise, less as generation does; and how much of it the future makes."""
    name, text, config, batch_size = "loss gap, training", subject.scored, subject.model.config, subject.batch_size
    factor, model, tolerance = config.capacity_factor, subject.without_noise(), rounding(subject)
    limited = subject.limit(factor, training=True) is not None
    promise = subject.promise(training=True, limited=limited)
    rows = subject.unit(promise)
    together_BS = in_batches(model, text, batch_size=batch_size, capacity_factor=factor)
    one = gap(together_BS, one_by_one_BS, rows=rows, rounding=tolerance)
    words, numbers = measured(one, rows=rows), figures(one)
    routed_as_validated = subject.without_noise()
    for router in routed_as_validated.routers:
        router.eval()
    unlimited_BS = in_batches(routed_as_validated, text, batch_size=batch_size, capacity_factor=None)
    free = gap(unlimited_BS, one_by_one_BS, rows=1, rounding=tolerance)
    if not abs(free.mean) <= tolerance:
        meaning = f"without a limit training does not score as generation does: by {plus_minus(free)}"
        return Finding(name, Verdict.FAIL, words, meaning, numbers)
    if one.mean != one.mean or not (limited or promise.draws or promise.sees_future):
        good, bad = "trained without a limit: nothing is lost", "training does not score as generation does"
        good, bad = (when(promise.state, meaning) for meaning in (good, bad))
        return judged(name, abs(one.mean) <= tolerance, words, numbers, good=good, bad=bad)
    if not promise.sees_future:
        costly = [f"the capacity of training ({named(factor)})"] * limited + ["drawing experts"] * promise.draws
        meaning = f"the cost of {' and '.join(costly)}; the future is no part of it"
        return Finding(name, Verdict.PASS, words, when(promise.state, meaning), numbers)
    future = future_gap(model, text, batch_size=batch_size, capacity_factor=factor, rows=rows, rounding=tolerance)
    profits = future.resolved() and future.mean < -tolerance
    meaning = (
        "its loss in training is lower for seeing the future"
        if profits
        else f"the leak is not seen to lower the loss: {unseen(future)}"
    )
    return Finding(
        name,
        leak(profits, known=True),
        f"{words}; by seeing the future: {measured(future, rows=rows)}",
        when(promise.state, meaning),
        numbers | figures(future, "future "),
        "sees_future",
    )


def in_batches(
    model: SwitchLM, text: Windows, *, batch_size: int, capacity_factor: float | EllipsisType | None
) -> Tensor:
    """Nats (B, S) of each target, in the model's mode, in batches whose rows share the experts' capacity."""
    parts = zip(*(part.split(batch_size) for part in text), strict=True)
    with noise(0, text[0].device):
        return torch.cat([whole(model, *part, capacity_factor=capacity_factor) for part in parts])


def future_gap(
    model: SwitchLM,
    text: Windows,
    *,
    batch_size: int,
    capacity_factor: float | None,
    rows: int,
    rounding: float,
) -> Estimate:
    """The loss at some positions where the true next character follows, less that where another does.

    Below 0 where the future helps. Both continue with the same text of another window, so that both have a seam: of the
    same batch, so that batches stay independent.
    """
    ids_BS, target_BS = text
    together = batch_size if batch_size > 1 else len(ids_BS)
    other_BS = torch.cat([part_BS.roll(max(1, len(part_BS) // 2), dims=0) for part_BS in ids_BS.split(together)])
    arms: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in sorted({ids_BS.shape[1] * i // POSITIONS for i in range(POSITIONS)}):
        for seen, arm in enumerate(arms):
            end = t + 2 - seen
            mixed_BS = torch.cat([ids_BS[:, :end], other_BS[:, end:]], dim=1)
            scored_BS = in_batches(model, (mixed_BS, target_BS), batch_size=batch_size, capacity_factor=capacity_factor)
            arm.append(scored_BS[:, t])
    first_BN, second_BN = (torch.stack(arm, dim=1) for arm in arms)
    return gap(first_BN, second_BN, rows=rows, rounding=rounding)
