"""What happens between two training steps changes nothing in the second, bit for bit."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import folder_of, logged
from lightning.pytorch.callbacks import Callback
from small_models import noisy, short_run

from switch_lm.config.schema import Config, HealthConfig
from switch_lm.storage import checkpoint
from switch_lm.training import run
from switch_lm.training.callbacks import window_losses
from switch_lm.training.prepare import Training
from switch_lm.training.start import train


def end_of(config: Config) -> dict[str, Any]:
    train(config)
    return checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")


def points_of(run: Path) -> dict[str, dict[int, float]]:
    """Everything that was logged but the measured times and the row of hyperparameters."""
    return {tag: points for tag, points in logged(run).items() if not tag.startswith("perf/")}


def test_validating_sampling_and_scoring_windows_after_every_step_gives_the_run_that_does_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_losses, "EVERY", 1)
    config = short_run(tmp_path)
    config = replace(noisy(config), trainer=replace(config.trainer, max_steps=5))
    rarely = replace(config, name="rarely", trainer=replace(config.trainer, val_every=5))
    often = replace(config, name="often", logger=replace(config.logger, sample_length=7, sample_prompt="a"))
    first, second = end_of(rarely), end_of(often)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(first[key], second[key]), key


def test_the_noise_of_a_step_is_its_own_whatever_numbers_were_drawn_before(tmp_path: Path) -> None:
    config = short_run(tmp_path)
    config = noisy(config)
    first = end_of(config)
    torch.rand(1000)
    assert same(first["state_dict"], end_of(replace(config, name="again"))["state_dict"])
    other = end_of(replace(config, name="calm", router=replace(config.router, jitter=0.0)))
    assert not same(first["state_dict"], other["state_dict"])  # the noise was on


@pytest.mark.parametrize("shuffle", [list.reverse, random.Random(1).shuffle, random.Random(2).shuffle])
def test_callbacks_in_any_order_give_the_same_run_and_the_same_points(
    shuffle: Callable[[list[Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(short_run(tmp_path), health=HealthConfig(every=1))
    config = replace(noisy(config), logger=replace(config.logger, sample_length=7))
    config.trainer.accumulate, config.trainer.keep_best = 2, 2
    first, callbacks_of = end_of(config), run.callbacks_of

    def shuffled(training: Training) -> list[Callback]:
        callbacks = callbacks_of(training)
        shuffle(callbacks)
        return callbacks

    monkeypatch.setattr(run, "callbacks_of", shuffled)
    other = replace(config, name="shuffled")
    second = end_of(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "drops", "validation"):
        assert same(first[key], second[key]), key
    assert points_of(folder_of(config)) == points_of(folder_of(other))
    assert first["callbacks"].keys() == second["callbacks"].keys()
    ranked = [state["callbacks"]["Best(best)"]["best_model_score"] for state in (first, second)]
    assert ranked[0] == ranked[1] == pytest.approx(min(points_of(folder_of(config))["val/loss"].values()), abs=1e-6)


class Slow(Callback):
    """Takes a tenth of a second after each step."""

    slept = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.1)
        self.slept += 0.1

    def figures(self) -> dict[str, Any]:
        return {"slept": self.slept}


def test_training_seconds_exclude_every_callback_and_a_callback_adds_its_own_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, callbacks_of = short_run(tmp_path), run.callbacks_of
    config.model.switch_every, config.trainer.max_steps, config.trainer.val_every = 0, 12, 12
    monkeypatch.setattr(run, "callbacks_of", lambda training: [Slow(), *callbacks_of(training)])
    result = train(config)
    assert result["slept"] == pytest.approx(1.2)
    assert 0 < result["training_seconds"] < result["seconds"] - result["slept"]
