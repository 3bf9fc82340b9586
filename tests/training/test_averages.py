"""Averages of the weights: what they are by hand, what they validate to, and that a run does not notice them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from compare import same
from conftest import folder_of, logged
from small_models import family
from some_steps import around_each_micro_batch, nothing
from torch import Tensor, nn

from switch_lm import evaluate
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.optim.options import MuonOptions
from switch_lm.storage import checkpoint
from switch_lm.training.callbacks.averages import Averages
from switch_lm.training.callbacks.progress import TimeLeft
from switch_lm.training.hardware import require_memory
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

STEPS = 12
FACTORS: dict[str, Callable[[int], float]] = {  # of the weights after step n, relative to those after the last one
    "0.9": lambda n: 0.9 ** (STEPS - n),
    "0.001": lambda n: 0.001 ** (STEPS - n),
    "tail_0.4": lambda n: n > 7,  # round(4.8) = 5 steps
    "tail_0.01": lambda n: n == STEPS,  # one at least
}


@pytest.fixture
def averaged(config: Config) -> Config:
    """One validation, at the end."""
    config.optim.averages = [0.9, 0.001, "tail_0.4", "tail_0.01"]
    config.trainer.val_every, config.logger.sample_length = STEPS, 0
    return config


def last(config: Config) -> Path:
    return folder_of(config) / "checkpoints" / "last.ckpt"


def test_each_average_is_the_weighted_mean_of_the_weights_after_its_steps(
    averaged: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged.router, averaged.model.tie_embeddings, averaged.trainer.accumulate = family("frozen"), True, 2
    after: dict[int, dict[str, Tensor]] = {}

    def note(module: SwitchModule) -> None:
        after[module.global_step] = {name: w.detach().double() for name, w in module.model.named_parameters()}

    around_each_micro_batch(monkeypatch, start=nothing, end=note)
    train(averaged)
    averages = checkpoint.read(last(averaged))["averages"]
    assert list(averages) == list(FACTORS)
    for average, factor in FACTORS.items():
        total = sum(factor(n) for n in range(1, STEPS + 1))
        assert averages[average].keys() == after[STEPS].keys()
        for name, got in averages[average].items():
            want = sum(factor(n) * after[n][name] for n in range(1, STEPS + 1)) / total
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)
    ours, frozen = averages["0.9"], "blocks.0.ffn.router.w_DE"
    assert torch.equal(ours[frozen].double(), after[1][frozen])
    assert not torch.allclose(ours["embedding.weight"].double(), after[STEPS]["embedding.weight"], atol=1e-4)
    model, _ = checkpoint.read_model(last(averaged), average="0.9")
    assert torch.equal(model.head.weight, ours["embedding.weight"]) and model.head.weight is model.embedding.weight


def test_each_is_validated_as_the_weights_are_and_training_and_last_weights_stay_as_without_any(
    averaged: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    averaged.trainer.precision, averaged.logger.progress = "bf16", "lines"
    plain = replace(averaged, name="plain", optim=MuonOptions(warmup_steps=3))
    want, got = train(plain), train(averaged)
    without, state = checkpoint.read(last(plain)), checkpoint.read(last(averaged))
    assert state.keys() - without.keys() == {"averages"} and "val_loss_averaged" not in want
    assert all(same(state[key], without[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers"))
    assert got["val_loss"] == want["val_loss"] == got["val_loss_averaged"]["tail_0.01"]
    assert got["val_loss_train_capacity"] == want["val_loss_train_capacity"]
    row = ", ".join(f"{name}: {loss:.4f}" for name, loss in got["val_loss_averaged"].items())
    shown = " ".join(capsys.readouterr().out.split())
    assert f"averaged {row} (last weights: {got['val_loss']:.4f})" in shown
    for name, loss in got["val_loss_averaged"].items():
        assert logged(folder_of(averaged))[f"val/loss_average_{name}"] == {STEPS: loss}
    where = ["--run", str(folder_of(averaged)), "--json", str(tmp_path / "seen.json")]
    assert evaluate.main([*where, "--average", "0.9"]) == 0
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["average"] == "0.9" and seen["results"][0]["loss"] == got["val_loss_averaged"]["0.9"] > got["val_loss"]
    capsys.readouterr()
    for run, have in ((averaged, "it has 0.9, 0.001, tail_0.4, tail_0.01: name one of these"), (plain, "it has none")):
        assert evaluate.main(["--run", str(folder_of(run)), "--average", "0.5"]) == 1
        assert f"no average 0.5 of the weights; {have}" in capsys.readouterr().err


def test_the_models_own_weights_are_back_after_an_error(averaged: Config) -> None:
    model, averages = nn.Linear(2, 2), Averages(averaged, Mock())
    averages.after_step(Mock(model=model), 1, ())
    nn.init.zeros_(model.weight)
    before = model.weight.data_ptr()
    with suppress(KeyboardInterrupt), averages.swapped(model, "0.9"):
        assert model.weight.any()
        raise KeyboardInterrupt
    assert not model.weight.any() and model.weight.data_ptr() == before and averages.weights["0.9"]["weight"].any()


def test_the_time_left_counts_the_passes_with_averages(averaged: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, of = list[int](), 6  # batches in a pass

    def seconds(self: TimeLeft, step: int, *, batches_left: int = 0) -> float:
        asked.append(batches_left)
        return 1.0

    monkeypatch.setattr(TimeLeft, "seconds", seconds)
    train(averaged)
    assert asked == [4 * of] * (STEPS - 1) + [*range(5 * of, -of - 1, -1)]  # below 0: of the last evaluation


def test_memory_counts_a_copy_of_the_weights_for_each(averaged: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * averaged.model.num_params(25, averaged.router) * (3 + 4)  # and little of each character
    monkeypatch.setattr("switch_lm.training.hardware.memory_bytes", lambda: needed)
    with pytest.raises(ConfigError, match="parameters and steps of"):
        require_memory(averaged, "cpu", 25)
    averaged.optim.averages = [0.9]
    require_memory(averaged, "cpu", 25)
