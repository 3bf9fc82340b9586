"""What happens between two training steps changes nothing in the second, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare import same
from small_models import NOISE, short_run

from switch_lm.config.schema import Config
from switch_lm.storage import checkpoint
from switch_lm.training.callbacks import window_losses
from switch_lm.training.start import train


def end_of(config: Config) -> dict[str, object]:
    train(config)
    return checkpoint.read(Path(config.outputs) / "runs" / str(config.name) / "checkpoints" / "last.ckpt")


def test_validating_sampling_and_scoring_windows_after_every_step_gives_the_run_that_does_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_losses, "EVERY", 1)
    config = short_run(tmp_path)
    config = replace(config, model=replace(config.model, **NOISE), trainer=replace(config.trainer, max_steps=5))
    rarely = replace(config, name="rarely", trainer=replace(config.trainer, val_every=5))
    often = replace(config, name="often", logger=replace(config.logger, sample_length=7, sample_prompt="a"))
    first, second = end_of(rarely), end_of(often)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(first[key], second[key]), key


def test_the_noise_of_a_step_is_its_own_whatever_numbers_were_drawn_before(tmp_path: Path) -> None:
    config = short_run(tmp_path)
    config = replace(config, model=replace(config.model, **NOISE))
    first = end_of(config)
    torch.rand(1000)
    assert same(first["state_dict"], end_of(replace(config, name="again"))["state_dict"])
    other = end_of(replace(config, name="calm", model=replace(config.model, router_jitter=0.0)))
    assert not same(first["state_dict"], other["state_dict"])  # the noise was on
