"""The certificate, the inspection and the sample page of routers that differ from `switch` in all that they may."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT, MakeRun, checkpoint_of, tiny_model
from other_routers import ChosenOptions, ExpertChoice
from small_models import family
from test_check import LEAKY, LEAKY_ROWS, findings_of, subject_of, verdicts

from switch_lm import check, generate, inspect
from switch_lm.certificate.finding import Verdict
from switch_lm.inspection.counterfactual import counterfactual
from switch_lm.measure.scoring import whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe, recorded
from switch_lm.routers.options import RouterOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.uniform import UniformRouter
from switch_lm.storage import checkpoint
from switch_lm.text.vocabulary import Vocabulary

Break = Callable[[pytest.MonkeyPatch], None]
VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=8)


def chosen(vocab_size: int = len(VOCABULARY), **changes: Any) -> SwitchLM:
    return tiny_model(vocab_size, router=ChosenOptions(), **changes)


def failed(model: SwitchLM) -> set[str]:
    return {name for name, verdict in verdicts(subject_of(model)).items() if verdict == Verdict.FAIL}


def test_it_leaks_in_training_as_it_promises_and_passes_everything_else() -> None:
    model = chosen()
    routing = model(PROBE.ids_BS).routings[0]
    counts = torch.bincount(routing.token_N[routing.used_N], minlength=routing.num_tokens)
    assert counts.min() == 0 and counts.max() >= 2
    result = findings_of(subject_of(model))
    assert {name for name, one in result.items() if one.verdict == Verdict.FAIL} == set()
    leaking = {name for name, one in result.items() if one.verdict == Verdict.LEAKS}
    assert leaking - {"loss gap, training"} == LEAKY and len(result) == 22
    assert result["selection"].figures["choices"] > 0
    assert result["balance loss"].meaning == "this router has no balance loss: alpha does nothing"


def test_a_router_that_gives_no_token_to_any_expert_is_found_out() -> None:
    model = chosen(capacity_factor=None)
    for router in model.routers:
        router.get_buffer("cutoff_E").fill_(2.0)
    assert failed(model) == {"router learns", "every expert used"}


def test_without_a_capacity_it_leaks_nothing() -> None:
    assert set(verdicts(subject_of(chosen(capacity_factor=None))).values()) == {Verdict.PASS}


def wrong_tokens(patch: pytest.MonkeyPatch) -> None:
    """By the scores of the token before."""
    real = ExpertChoice.assign
    patch.setattr(
        ExpertChoice,
        "assign",
        lambda self, x_TD, logits_TE, **call: real(self, x_TD, logits_TE.roll(1, dims=0), **call),
    )


def a_cutoff_for_all(patch: pytest.MonkeyPatch) -> None:
    real = ExpertChoice.assign

    def assign(self: ExpertChoice, *inputs: Any, **options: Any) -> Routing:
        own_E = self.cutoff_E
        self.cutoff_E = own_E.mean().expand_as(own_E)
        result = real(self, *inputs, **options)
        self.cutoff_E = own_E
        return result

    patch.setattr(ExpertChoice, "assign", assign)


def gates_that_add_up_to_one(patch: pytest.MonkeyPatch) -> None:
    real = ExpertChoice.assign

    def assign(self: ExpertChoice, *inputs: Any, **options: Any) -> Routing:
        result = real(self, *inputs, **options)
        real_N = torch.ones_like(result.kept_N) if result.used_N is None else result.used_N
        sum_T = torch.zeros(result.num_tokens).index_add(0, result.token_N, result.gate_N * real_N)
        return replace(result, gate_N=result.gate_N / sum_T[result.token_N].clamp(min=1e-6))

    patch.setattr(ExpertChoice, "assign", assign)


def what_is_no_assignment_is_computed(patch: pytest.MonkeyPatch) -> None:
    real = ExpertChoice.assign

    def assign(self: ExpertChoice, *inputs: Any, **options: Any) -> Routing:
        result = real(self, *inputs, **options)
        return replace(result, used_N=None)

    patch.setattr(ExpertChoice, "assign", assign)


def promised(**answers: Any) -> Break:
    def fault(patch: pytest.MonkeyPatch) -> None:
        real = ExpertChoice.promise
        patch.setattr(ExpertChoice, "promise", lambda self, **when: replace(real(self, **when), **answers))

    fault.__name__ = "promises_" + "_".join(answers)
    return fault


FAULTS: dict[Break, set[str]] = {
    wrong_tokens: {"selection"},
    a_cutoff_for_all: {"selection"},
    gates_that_add_up_to_one: {"gates", "layer's output", "layer's gradients"},
    what_is_no_assignment_is_computed: {"selection", "choices conserved"},
    promised(sees_future=False): {"own future, training"},
    promised(depends_on_rows=False): {"other rows, training"},
    promised(fixed_computation=True): {"promise"},
    promised(experts_per_token=1): {"promise"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_or_a_promise_that_is_not_kept_fails(fault: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chosen()
    fault(monkeypatch)
    assert FAULTS[fault] - failed(model) == set()


def test_a_router_without_an_oracle_fails_with_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExpertChoice, "oracle", None)
    result = findings_of(subject_of(chosen()))
    assert {name for name, one in result.items() if one.verdict == Verdict.FAIL} == {"oracle"}
    assert "ExpertChoice" in result["oracle"].measured and "docs/design.md" in result["oracle"].meaning
    assert "layer's output" not in result and "choices conserved" in result


def test_of_two_equal_scores_either_may_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens have the same scores: the oracle gives each expert the first ones, the router the last."""
    model = chosen()
    for router in model.routers:
        router.get_parameter("w_DE").data.zero_()
    real = ExpertChoice.assign

    def assign(self: ExpertChoice, *inputs: Any, **call: Any) -> Routing:
        result = real(self, *inputs, **call)
        return replace(result, token_N=result.num_tokens - 1 - result.token_N)

    monkeypatch.setattr(ExpertChoice, "assign", assign)
    result = findings_of(subject_of(model))
    assert result["selection"].verdict == result["slots"].verdict == Verdict.PASS
    assert "two scores are tied" in result["slots"].measured


def test_a_counterfactual_forces_the_first_choice_and_leaves_the_others() -> None:
    result = counterfactual(chosen(), PROBE, positions=3)
    for one in (*result.held, *result.own):
        assert 1.0 < one.num_experts < 4.0 and 0.25 < one.chance < 1.0
        assert one.best_gains.mean >= 0.0 and 1.0 <= one.rank.mean <= 4.0


def test_gates_that_do_not_come_from_the_routers_gates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExpertChoice, "gates", lambda self, score_TK: 2 * score_TK)
    with pytest.raises(ValueError, match=r"ExpertChoice\.gates does not give the gates that its assign has used"):
        counterfactual(chosen(), PROBE, positions=1)


@pytest.mark.parametrize("options", [ChosenOptions(), family("hash")], ids=lambda options: options.name)
def test_it_is_checked_inspected_and_shown_on_a_page(
    options: RouterOptions, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(router=options, capacity_factor=0.5)
    folder = make_run("other", model=model)
    checkpoint.write(checkpoint_of(model, TEXT, "fp32") | {"global_step": 9}, folder / "checkpoints" / "best.ckpt")
    assert check.main(["--run", "other"]) == 0
    assert inspect.main(["--run", "other", "--out", "seen"]) == 0
    dropped = re.findall(r"dropped ([\d.]+)%", capsys.readouterr().out)
    assert dropped and (set(dropped) == {"0.0"}) == (options.name == "test_expert_choice")  # an expert gives its slots
    assert (Path("seen") / "inspect.html").is_file()
    assert generate.main(["--run", "other", "--length", "30", "--html", "page.html"]) == 0
    assert Path("page.html").stat().st_size > 1000
    capsys.readouterr()
    assert check.main(["--run", "other", "--all-policies"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "--all-policies" in one]
    assert f"of switch and topk, and this router is {options.name}; leave it out" in line


# --- Routers that read characters and positions, and one that is not trained


NO_WEIGHTS = "by design no router has weights to train"


@pytest.mark.parametrize(
    ("options", "meaning", "leaky"),
    [(family("hash"), NO_WEIGHTS, LEAKY_ROWS), (family("uniform"), NO_WEIGHTS, set()),  # it drops whatever stands there
     (family("frozen"), "frozen by design, not dead", LEAKY_ROWS)],
)  # fmt: skip
def test_a_router_that_is_not_trained_passes_by_design(options: RouterOptions, meaning: str, leaky: set[str]) -> None:
    result = findings_of(subject_of(tiny_model(router=options)))
    assert {name for name, one in result.items() if one.verdict == Verdict.FAIL} == set()
    assert {name for name, one in result.items() if one.verdict == Verdict.LEAKS} - {"loss gap, training"} == leaky
    assert result["router learns"].meaning == meaning


@pytest.mark.parametrize("shift", [{"ids_T": 1}, {"position_T": 1}], ids=str)
def test_a_router_that_reads_another_character_or_position_fails(
    shift: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = UniformRouter.assign

    def assign(self: UniformRouter, *inputs: Any, **options: Any) -> Routing:
        return real(self, *inputs, **options | {name: options[name] + by for name, by in shift.items()})

    monkeypatch.setattr(UniformRouter, "assign", assign)
    assert "selection" in failed(tiny_model(router=family("uniform")))


def test_reading_from_a_layer_on_gives_such_a_router_its_characters_and_positions() -> None:
    model = tiny_model(len(VOCABULARY), router=family("uniform"), num_layers=3)
    expected_BS = whole(model, PROBE.ids_BS, PROBE.target_BS, capacity_factor=None)
    nll_from = recorded(model, PROBE)
    assert all(torch.allclose(nll_from(layer), expected_BS, atol=1e-5) for layer in range(3))
