"""The certificate: sound models pass, or leak as their rule is known to; test_check_faults plants faults that fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import BATCH_SIZE, TEXT, tiny_model
from leak_table import TABLE
from small_models import family

from switch_lm.certificate import leaks, scores
from switch_lm.certificate.certify import certify
from switch_lm.certificate.choices import _is_capacity
from switch_lm.certificate.finding import Finding, Verdict, with_judgements
from switch_lm.certificate.policies import measure, policies
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.transformer import SwitchLM, choosing_as_trained
from switch_lm.probe.subject import Subject, promised, seeded
from switch_lm.routers.base import Promise
from switch_lm.routers.options import BalanceOptions
from switch_lm.text.vocabulary import Vocabulary

IDS = torch.randint(len(Vocabulary.of(TEXT)), (700,), generator=torch.Generator().manual_seed(0))


def subject_of(model: SwitchLM | None = None, **changes: Any) -> Subject:
    return Subject(model or tiny_model(**changes), IDS, BATCH_SIZE, alpha=0.01)


def findings_of(subject: Subject) -> dict[str, Finding]:
    return {finding.check: finding for finding in certify(subject)}


def verdicts(subject: Subject) -> dict[str, Verdict]:
    return {name: finding.verdict for name, finding in findings_of(subject).items()}


LATER = "own future, training"
LEAKY_ROWS = {"other rows, training"}
LEAKY = LEAKY_ROWS | {LATER}
LOSS_GAPS = {"loss gap, training", "loss gap, evaluation"}
SOUND: dict[str, tuple[dict[str, Any], set[str]]] = {
    "default": ({}, LEAKY_ROWS),
    "jitter and dropout": ({"jitter": 0.3, "dropout": 0.2, "expert_dropout": 0.2}, LEAKY_ROWS),
    "dropless": ({"capacity_factor": None}, set()),
    "by row": ({"capacity_group": "sequence"}, set()),
    "random": ({"drop_order": "random"}, LEAKY),
    "probability": ({"drop_order": "probability"}, LEAKY),
    "reroute": ({"overflow": "reroute"}, LEAKY),
    "passthrough": ({"overflow": "passthrough"}, LEAKY_ROWS),
    "two choices": ({"top_k": 2, "renormalize_gates": True}, LEAKY_ROWS),
    "two choices by choice": ({"top_k": 2, "queue_order": "choice"}, LEAKY),
    "straight through": ({"gate_scale": "straight_through"}, LEAKY_ROWS),
    "sampled": ({"selection": "sample"}, LEAKY_ROWS),
    "sampled, dropless": ({"selection": "sample", "capacity_factor": None}, set()),
    "one of several": ({"top_k": 1, "queue_order": "token"}, LEAKY_ROWS),
    "all at random": ({"drop_order": "random", "overflow": "reroute", "capacity_group": "sequence"}, {LATER}),
    "bias": ({"balance": BalanceOptions("sign", rate=0.1)}, LEAKY_ROWS),
    "shared expert": ({"shared_expert": True}, LEAKY_ROWS),
    "random drops": ({"random_drop_rate": 0.3}, LEAKY_ROWS),
    "every second block": ({"switch_every": 2}, LEAKY_ROWS),
    "sigmoid": ({"router": family("sigmoid", top_k=2), "balance": BalanceOptions("quantile")}, LEAKY_ROWS),
    "frozen, even": ({"router": family("frozen"), "balance": BalanceOptions("quantile")}, LEAKY_ROWS),
    "expert choice": ({"router": family("expert_choice"), "eval_capacity_factor": 0.5}, LEAKY),  # which does nothing
    "expert choice, by row": ({"router": family("expert_choice", capacity_group="sequence")}, {LATER}),
    "threshold": ({"router": family("threshold", warmup_steps=0), "eval_capacity_factor": 0.5}, set()),
    "threshold, in its warm-up": ({"router": family("threshold", top_k=2)}, LEAKY),
    "one expert": (
        {"num_experts": 1, "capacity_factor": 0.75},
        set(),
    ),  # the last tokens are dropped, whatever the text
    "a capacity in evaluation": (
        {"eval_capacity_factor": 0.5},
        LEAKY_ROWS | {"other rows, evaluation", "batch size, evaluation"},
    ),
    "dense": ({"switch_every": 0}, set()),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_model_passes_and_leaks_what_its_rule_is_known_to_leak(name: str) -> None:
    changes, known = SOUND[name]
    result = findings_of(subject_of(**changes))
    assert [check for check, finding in result.items() if finding.verdict == Verdict.FAIL] == []
    leaking = {check for check, finding in result.items() if finding.verdict == Verdict.LEAKS}
    assert leaking - LOSS_GAPS == known  # a leak need not change the loss (test_check_gaps)
    assert len(result) == (9 if name == "dense" else 22)
    assert all(finding.measured and finding.meaning for finding in result.values())
    expected = "in evaluation too" if name == "a capacity in evaluation" else "; harmless in evaluation"
    judged = {check for check, finding in result.items() if expected in finding.judgement}
    assert judged == leaking == {check for check, finding in result.items() if finding.judgement}


@pytest.mark.parametrize(
    ("check", "verdict", "promise", "words"),
    [
        ("own future, training", Verdict.FAIL, "sees_future", "promises otherwise (sees_future): its losses are"),
        ("own future, training", Verdict.LEAKS, "sees_future", "not harmless: see other rows, evaluation"),
        (
            "other rows, training",
            Verdict.LEAKS,
            "depends_on_rows",
            "expected of this rule, in evaluation too: its losses",
        ),
        ("gates", Verdict.FAIL, "", ""),
    ],
)
def test_a_leak_is_judged_by_promises_and_by_the_checks_of_evaluation(
    check: str, verdict: Verdict, promise: str, words: str
) -> None:
    seen = Finding("other rows, evaluation", Verdict.LEAKS, "", "", promise="depends_on_rows")
    one, _ = with_judgements(
        [Finding(check, verdict, "", "", promise=promise), seen], evaluation=Promise(depends_on_rows=True)
    )
    assert words in one.judgement and bool(words) == bool(one.judgement)


@pytest.mark.parametrize("scale", [1000.0, 1e-6])
@pytest.mark.parametrize("name", ["default", "a capacity in evaluation", "probability"])
def test_verdicts_do_not_depend_on_the_size_of_the_logits(name: str, scale: float) -> None:
    subject = subject_of(tiny_model(**SOUND[name][0]))
    before = [(one.check, one.verdict) for one in (*leaks.check(subject), *scores.check(subject))]
    subject.model.head.weight.data *= scale
    assert [(one.check, one.verdict) for one in (*leaks.check(subject), *scores.check(subject))] == before


PEAKED: dict[str, dict[str, Any]] = {
    "second choices": {"top_k": 2, "renormalize_gates": True},
    "all choices": {"top_k": 4},
    "rerouted beside a shared expert": {"overflow": "reroute", "shared_expert": True},
    "straight-through second choices": {"top_k": 2, "gate_scale": "straight_through"},
    "straight-through and rerouted": {"overflow": "reroute", "gate_scale": "straight_through"},
}


@pytest.mark.parametrize("name", PEAKED)
def test_a_sound_model_passes_where_the_probability_of_a_choice_underflows(name: str) -> None:
    model = tiny_model(**PEAKED[name])
    for weight in model.router_parameters():
        weight.data *= 40
    subject = subject_of(model)
    routings = seeded(model, subject.few[0], seed=0, capacity_factor=model.config.capacity_factor).routings
    smallest = min(routing.scores_TE.gather(1, routing.assigned_TK).min().item() for routing in routings)
    assert smallest < torch.finfo(torch.float32).tiny
    failed = {check for check, verdict in verdicts(subject).items() if verdict == Verdict.FAIL}
    assert failed <= {"router learns"}  # a router that is so sure may have no gradient left


def test_a_model_with_tiny_weights_still_learns() -> None:
    assert verdicts(subject_of(init_scale=1e-6))["router learns"] == Verdict.PASS


def test_a_single_window_says_nothing_about_other_rows() -> None:
    result = findings_of(Subject(tiny_model(), IDS[:17], BATCH_SIZE, alpha=0.01))
    assert result["other rows, evaluation"].meaning == "the text has a single window: there are no other rows"
    assert (
        "too short to judge" in result["every expert used"].meaning or result["every expert used"].figures["idle"] == 0
    )
    assert result["every expert used"].verdict == Verdict.PASS


@pytest.mark.parametrize("name", TABLE)
def test_the_promised_leaks_of_a_rule_are_those_that_interventions_show(name: str) -> None:
    options, verdict = TABLE[name]
    promise = promised(tiny_model(**options), training=True, limited=options["capacity_factor"] is not None)
    assert (promise.sees_future, promise.depends_on_rows) == verdict


def test_a_check_changes_neither_the_model_nor_the_random_state() -> None:
    model = tiny_model(dropout=0.2, drop_order="random")
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    certify(subject_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_every_policy_does_what_the_table_says_on_the_same_weights() -> None:
    subject = subject_of(tiny_model(capacity_factor=0.75))
    result = {one.policy: one for one in measure(subject, factor=0.75)}
    assert list(result) == list(policies(subject)) and len(result) == 23
    assert all(Verdict.FAIL not in (one.sees_future, one.depends_on_rows) for one in result.values())
    assert result["position, drop"].sees_future == Verdict.PASS
    for leaking in ("random, drop", "probability, drop, by row", "position, reroute", "top 2, choice order, by row"):
        assert result[leaking].sees_future == Verdict.LEAKS, leaking
    by_row = {name: one.depends_on_rows for name, one in result.items() if name.endswith("by row")}
    assert set(by_row.values()) == {Verdict.PASS} and len(by_row) == 10
    free = result["no limit"]
    assert free.without_slot == 0.0 and free.by_future < 1e-12 and abs(free.gap.mean) < 1e-6
    assert result["position, drop"].without_slot > 0.2 and result["position, drop"].future is None


@pytest.mark.parametrize(
    ("capacity", "tokens", "experts", "factor", "right"),
    [(11, 100, 10, 1.1, True), (12, 100, 10, 1.1, False), (0, 1, 8, 1.0, False), (1, 1, 8, 1.0, True),
     (5, 5, 2, 4.0, True), (None, 9, 2, None, True), (9, 9, 2, None, False)],
)  # fmt: skip
def test_a_capacity_is_judged_in_fractions(
    capacity: int | None, tokens: int, experts: int, factor: float | None, right: bool
) -> None:
    assert _is_capacity(capacity, tokens, experts, factor) == right


@pytest.mark.parametrize(
    ("step", "verdict", "state"),
    [(1, Verdict.LEAKS, "in its warm-up (step 1 of 2): "), (2, Verdict.PASS, "after its warm-up of 2 steps: ")],
)
def test_the_certificate_of_a_threshold_says_which_part_of_its_run_it_is_in(
    step: int, verdict: Verdict, state: str
) -> None:
    model = tiny_model(router=family("threshold", warmup_steps=2))
    for router in model.routers:
        router.get_buffer("steps").fill_(step)
    result = {one.check: one for one in (*leaks.check(subject_of(model)), *scores.check(subject_of(model)))}
    for where in (LATER, "other rows, training"):
        assert result[where].verdict == verdict and result[where].meaning.startswith(state)
    assert result["loss gap, training"].meaning.startswith(state)
    assert result["own future, evaluation"].meaning == "what comes later in a text moves nothing before it"


def test_the_gap_of_expert_choice_is_a_window_by_its_training_rule_less_its_characters_by_its_cut_offs() -> None:
    model = tiny_model(router=family("expert_choice"), capacity_factor=1.0)
    subject = subject_of(model)
    (finding,) = [one for one in scores.check(subject) if one.check == "loss gap, training"]
    with choosing_as_trained(model):
        parts = zip(*(part.split(BATCH_SIZE) for part in subject.scored), strict=True)
        trained = torch.cat([whole(model, *part, capacity_factor=1.0) for part in parts])
    difference = (trained - character_by_character(model, *subject.scored)).mean().item()
    assert abs(difference) > 1e-4 and finding.figures["nats"] == pytest.approx(difference, abs=1e-6)
    assert "; by seeing the future: " in finding.measured
