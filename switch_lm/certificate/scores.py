"""Is a score the same in one pass, in other batches, with the cache and a second time? What do differences cost?"""

from types import EllipsisType

import torch
from torch import Tensor

from switch_lm.certificate.finding import Finding, Verdict, judged, leak
from switch_lm.certificate.leaks import named
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.subject import Gap, Subject, Windows, largest, noise, seeded

SAME = 1e-4  # float32: products of other shapes round differently
POSITIONS = 8  # in each window, at which its future is taken away


def check(subject: Subject) -> list[Finding]:
    return [
        _batch_size(subject),
        _cache(subject),
        _randomness(subject),
        _gap_in_evaluation(subject),
        _gap_in_training(subject),
    ]


def _batch_size(subject: Subject) -> Finding:
    """Rows together, one by one, and in unequal parts."""
    model, ids_BS, factor = subject.model, subject.few[0], subject.model.config.eval_capacity_factor
    together = seeded(model, ids_BS, seed=0).logits
    parts = [torch.cat([seeded(model, rows, seed=0).logits for rows in ids_BS.split(size)]) for size in (1, 3)]
    move = largest([part - together for part in parts])
    known, same = subject.promise(training=False, limited=subject.limited(factor)).depends_on_rows, move <= SAME
    meaning = (
        "a validation loss does not depend on the batch size"
        if same
        else f"validation has a capacity ({named(factor)}), which a batch's rows share"
        if known
        else "rows of one batch change each other's scores"
    )
    verdict = leak(not same, known=known and move == move)
    measured = f"logit moves {move:.2g} between 1, 3 and {len(ids_BS)} rows per batch"
    return Finding("batch size, evaluation", verdict, measured, meaning, {"move": move})


def _cache(subject: Subject) -> Finding:
    """Generation through the cache, in pieces of several lengths, and one text alone, as it is written."""
    model, ids_BS = subject.model, subject.few[0]
    whole_BSV = seeded(model, ids_BS, seed=0, capacity_factor=None).logits
    pieces = _in_pieces(model, ids_BS, (1, 3, 1, 5)) - whole_BSV
    alone = _in_pieces(model, ids_BS[:1], (1,)) - whole_BSV[:1]
    move = largest([pieces, alone])
    return judged(
        "cache",
        move <= SAME,
        f"logit moves {move:.2g} between pieces, single characters and one pass",
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
    move = largest([first - second])
    return judged(
        "no randomness, evaluation",
        move == 0,
        f"logit moves {move:.2g} between two seeds",
        {"move": move},
        good="no dropout, jitter or random drop is on",
        bad="something random is on in evaluation",
    )


def _gap_in_evaluation(subject: Subject) -> Finding:
    """As validation scores, less as generation does."""
    text, factor = subject.scored, subject.model.config.eval_capacity_factor
    together = in_batches(subject.model, text, batch_size=subject.batch_size, capacity_factor=...)
    gap = Gap.of(together, character_by_character(subject.model, *text))
    limited, same = subject.limited(factor), abs(gap.mean) <= SAME
    meaning = (
        "a validation loss is what generation would pay"
        if same
        else f"validation drops (at {named(factor)}) what generation, one character at a time, does not"
        if limited
        else "a window as a whole is not scored as generation would"
    )
    verdict = leak(not same, known=limited and gap.mean == gap.mean)
    return Finding("loss gap, evaluation", verdict, _measured(gap, text), meaning, _figures(gap))


def _gap_in_training(subject: Subject) -> Finding:
    """As training scores, without its noise, less as generation does; and how much of it the future makes."""
    name, text, config, batch_size = "loss gap, training", subject.scored, subject.model.config, subject.batch_size
    factor, model = config.capacity_factor, subject.without_noise()
    one_by_one_BS = character_by_character(subject.model, *text)
    gap = Gap.of(in_batches(model, text, batch_size=batch_size, capacity_factor=factor), one_by_one_BS)
    measured, figures = _measured(gap, text), _figures(gap)
    limited = subject.limited(factor)
    promise = subject.promise(training=True, limited=limited)
    routed_as_validated = subject.without_noise()
    for router in routed_as_validated.routers:
        router.eval()
    unlimited_BS = in_batches(routed_as_validated, text, batch_size=batch_size, capacity_factor=None)
    free = Gap.of(unlimited_BS, one_by_one_BS)
    if not abs(free.mean) <= SAME:
        meaning = f"without a limit training does not score as generation does: by {free}"
        return Finding(name, Verdict.FAIL, measured, meaning, figures)
    if gap.mean != gap.mean or not (limited or promise.draws or promise.sees_future):
        good, bad = "trained without a limit: nothing is lost", "training does not score as generation does"
        return judged(name, abs(gap.mean) <= SAME, measured, figures, good=good, bad=bad)
    if not promise.sees_future:
        costly = f"the capacity of training ({named(factor)})" if limited else "drawing experts at random in training"
        meaning = f"what {costly} costs; the future is no part of it"
        return Finding(name, Verdict.PASS, measured, meaning, figures)
    future = future_gap(model, text, batch_size=batch_size, capacity_factor=factor)
    exploited = future.mean < -max(SAME, 2 * future.standard_error)
    return Finding(
        name,
        leak(exploited, known=True),
        f"{measured}; {future} of it by seeing the future",
        "its loss in training is lower for seeing the future"
        if exploited
        else "the leak is not seen to lower the loss",
        figures | {f"future {key}": value for key, value in _figures(future).items()},
    )


def in_batches(
    model: SwitchLM, text: Windows, *, batch_size: int, capacity_factor: float | EllipsisType | None
) -> Tensor:
    """Nats (B, S) of each target, in the model's mode, in batches whose rows share the experts' capacity."""
    parts = zip(*(part.split(batch_size) for part in text), strict=True)
    with noise(0, text[0].device):
        return torch.cat([whole(model, *part, capacity_factor=capacity_factor) for part in parts])


def future_gap(model: SwitchLM, text: Windows, *, batch_size: int, capacity_factor: float | None) -> Gap:
    """The loss at some positions where the true next character follows, less that where another does.

    Below 0 where the future helps. Both go on with the same other text, so that both have a seam.
    """
    ids_BS, target_BS = text
    other_BS, length = ids_BS.roll(len(ids_BS) // 2, dims=0), ids_BS.shape[1]
    arms: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in sorted({length * i // POSITIONS for i in range(POSITIONS)}):
        for seen, arm in enumerate(arms):
            end = t + 2 - seen
            mixed_BS = torch.cat([ids_BS[:, :end], other_BS[:, end:]], dim=1)
            scored_BS = in_batches(model, (mixed_BS, target_BS), batch_size=batch_size, capacity_factor=capacity_factor)
            arm.append(scored_BS[:, t])
    return Gap.of(*(torch.stack(arm, dim=1) for arm in arms))


def _measured(gap: Gap, text: Windows) -> str:
    return f"{gap} nats per character ({len(text[0])} windows)"


def _figures(gap: Gap) -> dict[str, float]:
    return {"nats": gap.mean, "standard error": gap.standard_error}
