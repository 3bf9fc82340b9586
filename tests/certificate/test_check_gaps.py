"""Differences of losses: over which units they are estimated, what is said of them, and which verdict follows."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import BATCH_SIZE, tiny_model
from test_check import IDS, subject_of
from torch import Tensor

from switch_lm.certificate import scores, show
from switch_lm.certificate.choices import _drawn
from switch_lm.certificate.finding import Verdict
from switch_lm.certificate.gaps import gap, measured, plus_minus, unseen
from switch_lm.certificate.layers import Judged
from switch_lm.certificate.policies import Measured
from switch_lm.probe.subject import Subject
from switch_lm.routers.oracles import Expected
from switch_lm.routers.routing import Routing
from switch_lm.stats.intervals import Estimate

UNITS = torch.arange(1.0, 9.0)  # eight values: mean 4.5, variance 6
ERROR = math.sqrt(6 / 8)


def routed(expert_T: Tensor, scores_TE: Tensor) -> Routing:
    """One expert for each token, which nothing limits."""
    T = len(expert_T)
    return Routing.listed(
        token_N=torch.arange(T), expert_N=expert_T, gate_N=torch.ones(T), scores_TE=scores_TE, logits_TE=None,
        used_N=None, capacity=None,
    )  # fmt: skip


def per_window(value_B: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of two characters a window, whose mean differences are these."""
    difference_BS = value_B[:, None] + torch.tensor([-1.0, 1.0])
    return difference_BS + 2.0, torch.full_like(difference_BS, 2.0)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_gap_is_paired_and_has_one_value_for_each_unit(rows: int) -> None:
    one = gap(*per_window(UNITS.repeat_interleave(rows)), rows=rows)
    assert (one.mean, one.count, one.freedom) == (4.5, 8, 7)
    assert one.error == pytest.approx(ERROR)


def test_fewer_than_eight_batches_give_no_interval_and_say_so() -> None:
    one = gap(*per_window(UNITS[:7].repeat_interleave(4)), rows=4)
    assert (one.mean, one.count, one.error) == (4.0, 7, None)
    words = measured(one, rows=4)
    assert words == ("+4.0000 nats per character (no interval: the text has 7 batches of 4 windows, and 8 are needed)")
    assert "without an interval" in unseen(one)


def test_what_rounding_may_do_is_0_and_has_no_interval() -> None:
    noise_B = torch.randn(16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 1e-6
    one = gap(*(loss.double() for loss in per_window(noise_B)), rows=1, rounding=1e-5)
    assert (one.mean, one.error, plus_minus(one)) == (0.0, None, "0")
    assert measured(one, rows=1) == "equal up to rounding (16 windows)"
    assert gap(*per_window(torch.full((16,), torch.nan)), rows=1, rounding=1e-5).error is None


def test_plus_minus_is_half_of_the_95_percent_interval_and_never_0() -> None:
    assert plus_minus(Estimate(0.5, 8, 0.1, 7)) == "+0.5000 ± 0.2365"  # t(7) = 2.365
    assert plus_minus(Estimate(0.5, 8, 1e-6, 7)) == "+0.5000 ± 2e-06"
    assert plus_minus(Estimate(-1e-7, 8, 1e-7, 7)) == "-1e-07 ± 2e-07"
    assert plus_minus(Estimate(0.5, 8)) == "+0.5000"


@pytest.mark.parametrize(
    ("batch_size", "length", "windows"), [(4, 700, 40), (4, 1500, 64), (16, 3000, 128), (64, 700, 43)]
)
def test_eight_batches_are_read_where_the_text_has_them_and_only_whole_ones(
    batch_size: int, length: int, windows: int
) -> None:
    ids_N = torch.zeros(length, dtype=torch.long)
    assert len(Subject(tiny_model(), ids_N, batch_size, alpha=0.0).scored[0]) == windows


def test_a_batch_is_the_unit_only_where_its_rows_share_places() -> None:
    units = {}
    for changes in ({}, {"capacity_group": "sequence"}, {"capacity_factor": None}):
        subject = subject_of(tiny_model(**changes))
        limit = subject.limit(subject.model.config.capacity_factor, training=True)
        promise = subject.promise(training=True, limited=limit is not None)
        units[str(changes)] = subject.unit(promise)
    assert list(units.values()) == [BATCH_SIZE, 1, 1]


def test_the_future_of_a_batch_is_taken_from_that_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[Tensor]()
    monkeypatch.setattr(scores, "gap", lambda first_BN, second_BN, **options: kept.append(first_BN - second_BN))
    model, (ids_BS, target_BS) = tiny_model(capacity_factor=0.75).train(), subject_of().scored
    other_BS = ids_BS.clone()
    other_BS[:BATCH_SIZE] = other_BS[:BATCH_SIZE].flip(1)
    for read_BS in (ids_BS, other_BS):
        text = read_BS, target_BS
        scores.future_gap(model, text, batch_size=BATCH_SIZE, capacity_factor=0.75, rows=1, rounding=0.0)
    same_B = (kept[0] == kept[1]).all(dim=1)
    assert same_B[BATCH_SIZE:].all() and not same_B[:BATCH_SIZE].all()


@pytest.mark.parametrize(
    ("ratio", "verdict", "words"),
    [(2.4, Verdict.LEAKS, "its loss in training is lower for seeing the future"),
     (2.3, Verdict.PASS, "an effect of 0.014 nats would have been seen in 80% of such texts"),
     (-2.4, Verdict.PASS, "the leak is not seen to lower the loss"),
     (None, Verdict.PASS, "without an interval nothing is known of other texts")],
)  # fmt: skip
def test_a_model_profits_from_the_future_only_where_the_interval_excludes_0(
    ratio: float | None, verdict: Verdict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight batches: t(7) = 2.365, where two standard errors would do for a normal distribution."""
    future = Estimate(-0.01, 5) if ratio is None else Estimate(-0.01 * ratio / abs(ratio), 8, 0.01 / abs(ratio), 7)
    monkeypatch.setattr(scores, "future_gap", lambda *text, **options: future)
    (finding,) = [one for one in scores.check(subject_of(drop_order="random")) if one.check == "loss gap, training"]
    assert finding.verdict == verdict and words in finding.meaning
    assert ("no interval: the text has 5 batches of 4 windows" in finding.measured) == (ratio is None)
    assert finding.figures["future detectable"] == future.detectable


SPREAD = torch.tensor([-1.0, 1.0]).repeat(5)  # of ten batches; standard error 1/3


@pytest.mark.parametrize(
    ("moves", "changes", "verdict", "words"),
    [(0.1 + 0.12 * SPREAD, {"eval_capacity_factor": 0.5}, Verdict.LEAKS, "validation drops (at factor 0.5)"),
     (0.1 + 0.15 * SPREAD, {"eval_capacity_factor": 0.5}, Verdict.PASS, "an effect of 0.16 nats would have been seen"),
     (0.1 + 0.12 * SPREAD[:5], {"eval_capacity_factor": 0.5}, Verdict.PASS, "without an interval nothing is known"),
     (1e-6 + 0.03 * SPREAD, {"eval_capacity_factor": 0.5}, Verdict.PASS, "an effect of 0.031 nats would have"),
     (1e-7 * SPREAD, {"eval_capacity_factor": 0.5}, Verdict.PASS, "a validation loss is what generation would pay"),
     (1e-7 * SPREAD, {}, Verdict.PASS, "a validation loss is what generation would pay"),
     (0.1 + 0.5 * SPREAD, {}, Verdict.FAIL, "a window as a whole is not scored as generation would")],
    ids=["resolved", "not resolved", "a short text", "a mean near 0", "rounding", "rounding, no limit", "no limit"],
)  # fmt: skip
def test_a_gap_in_evaluation_leaks_where_it_is_resolved_and_fails_where_it_is_promised_to_be_0(
    moves: Tensor, changes: dict[str, Any], verdict: Verdict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(tiny_model(**changes), IDS[: 16 * 4 * len(moves) + 1], BATCH_SIZE, alpha=0.0)
    one_by_one_BS = torch.ones(4 * len(moves), 16)
    moved_BS = one_by_one_BS + moves.double().repeat_interleave(4)[:, None]
    monkeypatch.setattr(scores, "in_batches", lambda *text, **options: moved_BS)
    finding = scores._gap_in_evaluation(subject, one_by_one_BS)
    assert finding.verdict == verdict and words in finding.meaning
    assert ("equal up to rounding" in finding.measured) == (float(moves.abs().max()) < 1e-6)


def test_an_effect_in_the_table_of_policies_is_corrected_for_all_intervals_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 20 gaps with 63 degrees of freedom: t is 2.00 for one interval, 3.16 for all of them."""
    values = [2.5, 3.3] + [0.1] * 18
    rules = [
        Measured(f"rule {n}", Verdict.PASS, Verdict.PASS, 0.0, 0.0, 0.0, 1.0, Estimate(t * 0.1, 64, 0.1, 63), None)
        for n, t in enumerate(values)
    ]
    show.policies(rules, factor=1.0)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "rule " in line and "±" in line]
    assert ["*" in line for line in lines] == [t > 3.16 for t in values]
    assert "+0.2500 ± 0.1998" in lines[0] and "all 20 of this table" in " ".join(out.split())


@pytest.mark.parametrize(
    ("gaps", "how", "why"),
    [([Estimate(0.1, 64, 0.1, 63), Estimate(0.0, 5)], True, False),
     ([Estimate(0.1, 64, 0.1, 63), Estimate(0.1, 5)], True, True),
     ([Estimate(0.1, 5)], False, True),
     ([Estimate(0.0, 5)], False, False)],
    ids=["equal", "too few", "all too few", "all equal"],
)  # fmt: skip
def test_the_table_of_policies_says_why_a_gap_has_no_interval(
    gaps: list[Estimate], how: bool, why: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [Measured(f"rule {n}", Verdict.PASS, Verdict.PASS, 0.0, 0.0, 0.0, 1.0, g, None) for n, g in enumerate(gaps)]
    show.policies(rules, factor=1.0)
    out = " ".join(capsys.readouterr().out.split())
    assert ("±: half of the 95% interval" in out) == how
    assert ("Without ±: fewer than 8 batches" in out) == why


@pytest.mark.parametrize(("scale", "apart", "wrong"), [(1e4, 1e-6, 0), (1e4, 1e-4, 1), (1e-4, 1e-3, 1)])
def test_scores_are_tied_if_they_differ_by_rounding_of_the_largest(scale: float, apart: float, wrong: int) -> None:
    """The oracle takes expert 1, whose score is higher by `apart` of it; the router takes expert 0."""
    scores_TE = scale * torch.tensor([[1.0 - apart, 1.0]], dtype=torch.float64)
    one = torch.ones(1)
    expected = Expected(
        token=[0], selected=[1], assigned=[1], kept=[True], gate_N=one, scores_TE=scores_TE, probs_TE=scores_TE
    )
    assert Judged.of(routed(torch.tensor([0]), scores_TE), expected).wrong == wrong


def test_rare_misses_of_a_draw_are_chance_and_many_are_not() -> None:
    """Of 100 draws with p = 0.999, two others have probability 0.005; eleven have 1e-19."""
    probs_TE = torch.tensor([[0.999, 0.001]]).repeat(100, 1)
    for misses, by_chance in ((2, True), (11, False)):
        routing = routed((torch.arange(100) < misses).long(), probs_TE)
        case: Any = SimpleNamespace(quiet=SimpleNamespace(routing=routing))
        share, expected, off = _drawn(case, probs_TE)
        assert off == (not by_chance) and (share, expected) == pytest.approx((1 - misses / 100, 0.999))


def test_draws_of_any_expert_are_compared_with_p() -> None:
    """The most probable one is drawn as often as p says, and of the three others one in place of all."""
    probs_TE = torch.full((400, 4), 0.25)
    for of_others, wrong in ((torch.arange(400) % 3 + 1, False), (torch.ones(400, dtype=torch.int64), True)):
        routing = routed(torch.where(torch.arange(400) % 4 == 0, 0, of_others), probs_TE)
        case: Any = SimpleNamespace(quiet=SimpleNamespace(routing=routing))
        assert _drawn(case, probs_TE) == (0.25, 0.25, wrong)
