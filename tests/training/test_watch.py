"""What is measured beside training: three losses of fixed windows, and whether routers are alive."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import TEXT, folder_of, logged, tiny_model
from kept_board import kept
from small_models import noisy
from torch import Tensor

import switch_lm
from switch_lm import check
from switch_lm.config.schema import Config, HealthConfig
from switch_lm.measure.alarm import RouterAlarm
from switch_lm.measure.router_health import RouterHealth, router_health
from switch_lm.measure.scoring import character_by_character, whole
from switch_lm.model.losses import language_loss, summed
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import BalanceOptions
from switch_lm.routers.switch import SwitchRouter
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import TrainingError
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.text.windows import fixed_windows
from switch_lm.training.callbacks.window_losses import WindowLosses
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

V = len(Vocabulary.of(TEXT))


# --- Windows


def test_the_fixed_windows_are_spread_over_the_split_and_do_not_overlap() -> None:
    ids_BS, target_BS = fixed_windows(torch.arange(100), context_length=7, num_windows=4)
    assert ids_BS.shape == target_BS.shape == (4, 7) and torch.equal(target_BS, ids_BS + 1)
    assert ids_BS[:, 0].tolist() == [0, 24, 48, 72]
    crowded, _ = fixed_windows(torch.arange(30), context_length=7, num_windows=99)
    assert crowded[:, 0].tolist() == [0, 7, 14, 21]
    short, after = fixed_windows(torch.arange(5), context_length=7, num_windows=3)
    assert (short.tolist(), after.tolist()) == ([[0, 1, 2, 3]], [[1, 2, 3, 4]])


@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"eval_capacity_factor": 0.5}, {"position": "learned"}], ids=str)
def test_character_by_character_scores_as_one_dropless_pass(changes: dict[str, Any]) -> None:
    model, ids = tiny_model(**changes), torch.randint(V, (5, 17), generator=torch.Generator().manual_seed(0))
    text = ids[:, :-1], ids[:, 1:]
    assert torch.allclose(character_by_character(model, *text), whole(model, *text, capacity_factor=None), atol=1e-4)


def test_the_windows_have_three_losses_after_the_last_validation(config: Config) -> None:
    config.model.capacity_factor = 0.5
    result = train(config)
    points = logged(folder_of(config))
    model, vocabulary = switch_lm.load(folder_of(config) / "checkpoints" / "last.ckpt")
    ids = vocabulary.encode(Path(str(config.data.path)).read_text())
    ids = ids[int(0.9 * len(ids)) :]
    text = fixed_windows(ids, context_length=16, num_windows=8)
    expected = {
        "val/window_loss": whole(model, *text, capacity_factor=None),
        "val/window_loss_train_capacity": whole(model, *text, capacity_factor=0.5),
        "val/window_loss_generation": character_by_character(model, *text),
    }
    last = {}
    for tag, nll in expected.items():
        assert list(points[tag]) == [12]
        last[tag] = points[tag][12]
        assert last[tag] == pytest.approx(nll.mean().item(), abs=1e-5)
    assert abs(last["val/window_loss_generation"] - last["val/window_loss"]) < 1e-4
    assert abs(last["val/window_loss_train_capacity"] - last["val/window_loss"]) > 1e-3  # half of the choices dropped
    assert 0 < result["window_loss_seconds"] < result["seconds"]


@pytest.mark.parametrize(
    ("val_every", "max_steps", "due"),
    [
        (300, 900, [300, 600, 900]),
        (100, 400, [300, 400]),
        (200, 1100, [400, 600, 1000, 1100]),  # the first at or past 300, 600, 900, and the last
        (500, 1600, [500, 1000, 1500, 1600]),
        (50, 250, [250]),
    ],
)
def test_the_windows_are_scored_every_300_steps_and_at_the_last_step(
    val_every: int, max_steps: int, due: list[int], config: Config
) -> None:
    config.trainer = replace(config.trainer, val_every=val_every, max_steps=max_steps)
    windows = WindowLosses(torch.arange(99), config)
    windows.load_state_dict({"seconds": 1e6})  # the rule ignores them
    validated = [0, *range(val_every, max_steps, val_every), max_steps]
    assert [step for step in validated if windows.is_due(step)] == due


def test_a_dense_model_has_window_losses_and_no_router_health(config: Config) -> None:
    config.model.switch_every = 0
    result = train(config)
    tags = logged(folder_of(config))
    assert "val/window_loss_generation" in tags and not [tag for tag in tags if tag.startswith("health/")]
    assert (result["router_alarms"], result["router_health_seconds"]) == ([], 0.0)


def test_no_router_is_blamed_for_a_text_of_one_character(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    Path(str(config.data.path)).write_text("a" * 4000)
    config = replace(config, health=HealthConfig(every=1, checks=1), logger=replace(config.logger, progress="lines"))
    assert train(config)["router_alarms"] == []
    printed, reported = capsys.readouterr()
    assert f" --prompt={'a' * 16}\n" in printed and f" data.path={config.data.path} " in printed
    assert "every character to train on is 'a' (U+0061 LATIN SMALL LETTER A): there is n" in reported
    assert check.main(["--run", str(folder_of(config))]) == 2
    assert "there is nothing for a router to learn" in capsys.readouterr().err


# --- Router health


def test_the_gradients_are_those_of_a_backward_pass_through_each_loss() -> None:
    model = tiny_model(jitter=0.0).train()
    ids = torch.randint(V, (4, 17), generator=torch.Generator().manual_seed(0))
    text = ids[:, :-1], ids[:, 1:]
    health = router_health(model, *text, alpha=0.5)
    assert all(p.grad is None for p in model.parameters())
    grads = []
    for balance in (False, True):
        model.zero_grad()
        output = model(text[0])
        language = language_loss(output.logits, text[1])
        loss = 0.5 * summed(load_balancing_loss, output.routings) if balance else language
        loss.backward()
        grads.append(
            [torch.as_tensor(torch.as_tensor(layer.router.w_DE).grad).clone() for layer in model.switch_layers]
        )
    for layer, (language_DE, balance_DE) in enumerate(zip(*grads, strict=True)):
        assert health[layer].language_gradient == pytest.approx(language_DE.norm().item(), rel=1e-5)
        assert health[layer].balance_gradient == pytest.approx(balance_DE.norm().item(), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(language_DE.flatten(), balance_DE.flatten(), dim=0)
        assert health[layer].cosine == pytest.approx(cosine.item(), abs=1e-5)


def test_entropy_gate_and_shares_are_those_of_the_routing() -> None:
    model, ids = tiny_model(), torch.randint(V, (4, 17), generator=torch.Generator().manual_seed(0))
    routing_ = model(ids[:, :-1]).routings[1]
    health = router_health(model, ids[:, :-1], ids[:, 1:], alpha=0.0)[1]
    assert health.gate_mean == pytest.approx(routing_.gate_TK.mean().item())
    assert health.gate_spread == pytest.approx(routing_.gate_TK.std(correction=0).item())
    assert health.max_share == pytest.approx(routing_.load_E.max().item() / 64)
    assert health.busiest == int(routing_.load_E.argmax()) and health.even_share == 0.25
    assert health.idle_share == pytest.approx((routing_.load_E == 0).float().mean().item())
    assert (health.balance_gradient, health.cosine) == (0.0, None)  # alpha is 0
    assert "gradient_cosine" not in health.scalars() and health.scalars()["entropy"] == health.entropy


def test_measuring_the_routers_does_not_change_training(config: Config) -> None:
    config = noisy(config)
    watched = replace(config, name="watched", health=HealthConfig(every=1))
    unwatched = replace(config, name="unwatched", health=HealthConfig(every=0))
    train(watched)
    train(unwatched)
    states = [checkpoint.read(folder_of(c) / "checkpoints" / "last.ckpt") for c in (watched, unwatched)]
    for key in ("state_dict", "optimizer_states"):
        assert same(states[0][key], states[1][key]), key
    points = logged(folder_of(watched))
    names = {f"health/layer_{i:02d}/language_gradient" for i in (0, 1)}
    assert {tag for tag in points if tag.startswith("health/")} == names
    assert list(points["health/layer_01/language_gradient"]) == list(range(1, 13))
    assert not [tag for tag in logged(folder_of(unwatched)) if tag.startswith("health/")]


# --- Alarms


def dead(self: SwitchRouter, prob_TK: Tensor) -> Tensor:
    """Softmax after top-k: of one choice always 1."""
    return prob_TK.log().softmax(dim=-1)


def all_to_one(self: SwitchModule) -> None:
    for layer in self.model.switch_layers:
        torch.as_tensor(layer.router.bias_E)[1] = 10.0


def watched_closely(config: Config, **changes: Any) -> Config:
    return replace(config, health=HealthConfig(every=2), **changes)


def test_a_healthy_run_raises_no_alarm(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(watched_closely(config))
    assert result["router_alarms"] == [] and "warning" not in capsys.readouterr().err
    assert "summary/router alarm" not in kept(folder_of(config))


def test_a_dead_router_is_reported_once_with_the_fix(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SwitchRouter, "gates", dead)
    result = train(watched_closely(config))
    (message,) = result["router_alarms"]
    assert "step 6: the router of layers 00, 01 is dead" in message and "router.gate_scale=probability" in message
    assert capsys.readouterr().err == f"warning: {message}\n"
    assert kept(folder_of(config))["summary/router alarm"] == {6: message}
    assert result["steps"] == 12 and json.loads((folder_of(config) / "result.json").read_text()) == result


def test_a_collapsed_router_is_reported_once_with_the_fix(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.balance = BalanceOptions(name="sign", rate=1e-6)
    monkeypatch.setattr(SwitchModule, "on_train_start", all_to_one)
    (message,) = train(watched_closely(config))["router_alarms"]
    assert "collapsed: expert 1 gets 100% of the characters" in message and "a larger balance.rate" in message
    assert capsys.readouterr().err == f"warning: {message}\n"


def test_an_alarm_as_an_error_ends_training_and_the_run_can_resume_with_a_warning(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SwitchRouter, "gates", dead)
    with pytest.raises(TrainingError, match=r"step 6: the router .* is dead(.|\n)*resume=run"):
        train(watched_closely(config, router_alarm="error"))
    assert checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")["global_step"] == 5
    with pytest.raises(TrainingError, match="is dead"):
        train(watched_closely(config, resume="run", router_alarm="error"))
    assert train(watched_closely(config, resume="run"))["steps"] == 12


HEALTHY = RouterHealth(
    num_experts=4,
    even_share=0.25,
    language_gradient=0.1,
    expert_gradient=0.1,
    balance_gradient=0.01,
    cosine=0.0,
    entropy=1.0,
    gate_mean=0.5,
    gate_spread=0.1,
    max_share=0.4,
    busiest=2,
    idle_share=0.0,
)
DEAD, COLLAPSED = replace(HEALTHY, language_gradient=0.0), replace(HEALTHY, max_share=0.9)


def test_an_alarm_takes_several_checks_in_a_row_and_is_reported_once_also_after_a_restart() -> None:
    alarm = RouterAlarm(HealthConfig(checks=3), alpha=0.01, blocks=range(9))
    checks = [DEAD, DEAD, HEALTHY, DEAD, DEAD, DEAD, DEAD]
    assert [len(alarm.check([HEALTHY, health], step=i)) for i, health in enumerate(checks)] == [0, 0, 0, 0, 0, 1, 0]
    half = RouterAlarm(HealthConfig(checks=3), alpha=0.01, blocks=range(9))
    assert half.check([COLLAPSED], step=1) == half.check([COLLAPSED], step=2) == []
    restarted = RouterAlarm(HealthConfig(checks=3), alpha=0.01, blocks=range(9))
    restarted.load_state_dict(json.loads(json.dumps(half.state_dict())))
    (message,) = restarted.check([COLLAPSED], step=3)
    assert "layer 00 has collapsed: expert 2 gets 90%" in message
    again = RouterAlarm(HealthConfig(checks=3), alpha=0.01, blocks=range(9))
    again.load_state_dict(restarted.state_dict())
    assert again.check([COLLAPSED], step=4) == []


def test_a_router_that_is_not_trained_is_given_no_advice_for_training() -> None:
    alarm = RouterAlarm(HealthConfig(checks=1), alpha=0.01, blocks=range(9))
    (message,) = alarm.check([replace(COLLAPSED, can_learn=False, language_gradient=0.0)], step=1)
    assert message.endswith("It is not trained: its rule alone decides that")
    assert "alpha" not in message and "router.jitter" not in message


def test_a_single_expert_or_an_even_share_is_not_a_collapse() -> None:
    alarm = RouterAlarm(HealthConfig(checks=1), alpha=0.01, blocks=range(9))
    alone = replace(DEAD, num_experts=1, even_share=1.0, max_share=1.0)
    both = replace(HEALTHY, num_experts=2, even_share=1.0, max_share=1.0)  # top_k=2
    assert alarm.check([alone, both], step=1) == []


def test_a_gradient_of_rounding_noise_does_not_count_as_learning() -> None:
    noisy = replace(HEALTHY, language_gradient=3e-9)
    small = replace(noisy, expert_gradient=1e-8)
    assert not noisy.learns and HEALTHY.learns and small.learns


def test_another_layer_is_reported_later_and_standing_counts_what_was_reported_before() -> None:
    alarm = RouterAlarm(HealthConfig(checks=1), alpha=0.01, blocks=range(9))
    (first,) = alarm.check([COLLAPSED, HEALTHY], step=1)
    assert "layer 00 has" in first and alarm.standing
    assert [alarm.check([HEALTHY, HEALTHY], step=2), alarm.standing] == [[], False]
    (second,) = alarm.check([HEALTHY, COLLAPSED], step=3)
    assert "layer 01 has" in second and alarm.messages == [first, second]
    assert alarm.check([COLLAPSED, COLLAPSED], step=4) == [] and alarm.standing


def test_mostly_idle_experts_or_every_token_at_one_expert_are_a_collapse_too() -> None:
    for health in (
        replace(HEALTHY, num_experts=64, even_share=1 / 64, max_share=0.5, idle_share=62 / 64),
        replace(HEALTHY, even_share=0.75, max_share=1.0, idle_share=0.0),  # top_k=3
    ):
        assert len(RouterAlarm(HealthConfig(checks=1), alpha=0.01, blocks=range(9)).check([health], step=1)) == 1
    unknown = replace(HEALTHY, language_gradient=float("nan"))
    assert RouterAlarm(HealthConfig(checks=1), alpha=0.01, blocks=range(9)).check([unknown], step=1) == []
