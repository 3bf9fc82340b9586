"""What is logged of a step covers all its micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import folder_of, logged
from small_models import short_run
from worked import route

from switch_lm.config.schema import Config, LoggerConfig
from switch_lm.measure.metrics import RoutingSums, layer_scalars
from switch_lm.routers.routing import Routing
from switch_lm.storage import checkpoint
from switch_lm.training import run
from switch_lm.training.callbacks.base import MicroBatch, StepCallback
from switch_lm.training.losses import Losses
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


def test_shares_are_ratios_of_sums_and_means_are_over_all_tokens() -> None:
    """Two router calls of four tokens: three go to one expert, then three to the other, and each has two slots."""

    def routing(*experts: int) -> Routing:
        logits_TE = math.log(3.0) * torch.nn.functional.one_hot(torch.tensor(experts), 2).float()
        return route(logits_TE, capacity=2)  # p is 3/4 and 1/4

    sums = RoutingSums.of(routing(0, 0, 0, 1)) + RoutingSums.of(routing(1, 1, 1, 0))
    expected = {"dropped_share": 2 / 8, "load_max_over_mean": 1, "load_min_over_mean": 1}
    expected |= {"entropy_share": 2 - 0.75 * math.log2(3)}  # in bits, of the 1 that a choice between two can have
    for e in range(2):
        expected |= {f"load/expert_{e:02d}": 4, f"kept/expert_{e:02d}": 3}
    assert {tag: value.item() for tag, value in layer_scalars(sums).items()} == pytest.approx(expected)


def test_quantiles_over_the_experts_are_on_a_straight_line_between_two_of_them() -> None:
    """Of 5 experts the 5% quantile is number 0.2 from the least, a fifth of the way to the next."""
    load_E, one = torch.tensor([40, 10, 20, 0, 30]), torch.ones(())
    sums = RoutingSums(load_E, load_E // 10, one, one, choices=100, tokens=100)
    scalars = layer_scalars(sums, per_expert=False)
    for name, unit in (("load", 10), ("kept", 1)):
        of_experts = {tag.partition("/")[2]: x.item() for tag, x in scalars.items() if tag.startswith(f"{name}/")}
        expected = {"min": 0.0, "p05": 0.2, "median": 2.0, "p95": 3.8, "max": 4.0}
        assert of_experts == pytest.approx({q: unit * x for q, x in expected.items()})


def test_above_64_experts_quantiles_stand_for_the_curves_of_each_unless_they_are_asked_for(config: Config) -> None:
    asked = {(64, None): True, (65, None): False, (65, True): True, (2, False): False}
    assert {(n, wish): LoggerConfig(per_expert=wish).logs_each(n) for n, wish in asked} == asked
    config.model.num_experts, config.trainer.max_steps, config.trainer.val_every = 65, 2, 2
    result = train(config)
    loads = {tag for tag in logged(folder_of(config)) if tag.startswith("moe/layer_01/load/")}
    assert loads == {f"moe/layer_01/load/{name}" for name in ("min", "p05", "median", "p95", "max")}
    assert [len(load_E) for load_E in result["expert_load"]] == [65, 65]
    length = len(Path(str(config.data.path)).read_text())
    validation_ids = torch.zeros(length - int(0.9 * length))
    assert [sum(load_E) for load_E in result["expert_load"]] == [len(validation_ids) - 1] * 2


def figures_of(calls: list[Routing]) -> dict[str, float]:
    """By tag, counted from all choices of these router calls."""
    expert_N = torch.cat([call.expert_TK.flatten() for call in calls])
    kept_N = torch.cat([call.kept_TK.flatten() for call in calls])
    probs_TE = torch.cat([call.probs_TE for call in calls])
    load_E = expert_N.bincount(minlength=4).float()
    figures = {
        "dropped_share": 1 - kept_N.float().mean(),
        "load_max_over_mean": load_E.max() / load_E.mean(),
        "load_min_over_mean": load_E.min() / load_E.mean(),
        "entropy_share": torch.distributions.Categorical(probs_TE).entropy().mean() / math.log(4),
    }
    for e in range(4):
        figures[f"load/expert_{e:02d}"] = load_E[e]
        figures[f"kept/expert_{e:02d}"] = kept_N[expert_N == e].sum()
    return {tag: value.item() for tag, value in figures.items()}


def test_a_step_of_three_micro_batches_is_logged_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computed: list[Losses] = []
    real = SwitchModule.losses

    def noted(self: SwitchModule, *batch: Any, **group: Any) -> Losses:
        computed.append(real(self, *batch, **group))
        return computed[-1]

    monkeypatch.setattr(SwitchModule, "losses", noted)
    config = replace(short_run(tmp_path), z_loss=0.001, importance=0.01)
    config.trainer.accumulate, config.trainer.max_steps = 3, 4
    config.logger.log_every, config.logger.progress = 2, "lines"
    train(config)
    shown = capsys.readouterr().out
    in_run = logged(folder_of(config))
    callbacks = checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")["callbacks"]
    for i, step in enumerate((2, 4)):
        points = {tag: by_step[step] for tag, by_step in in_run.items() if tag.startswith(("train", "moe/"))}
        micro_batches = computed[3 * (step - 1) : 3 * step]
        parts = [(m.language, m.routers["balance"], m.router_z, m.importance) for m in micro_batches]
        values = [[loss.item() for loss in losses if loss is not None] for losses in parts]
        losses = torch.tensor(values).mean(0).tolist()
        for tag, loss in zip(("loss", "balance_loss", "z_loss", "importance_loss"), losses, strict=True):
            name = f"train/{tag}" if tag != "balance_loss" else "moe/balance_loss"
            assert points[name] == pytest.approx(loss / 2 if tag == "balance_loss" else loss)  # of the two layers
        assert f"step {step}/4  training loss {losses[0]:.3f}" in shown
        for layer in range(2):
            prefix, figures = f"moe/layer_{layer:02d}/", figures_of([part.routings[layer] for part in micro_batches])
            of_layer = {tag.removeprefix(prefix): p for tag, p in points.items() if tag.startswith(prefix)}
            assert of_layer == pytest.approx(figures, abs=1e-6)
            loads = [figures[f"load/expert_{e:02d}"] for e in range(4)]
            assert callbacks["RoutingPictures"]["load_CLE"][i, layer].tolist() == loads
            dropped_E = callbacks["RoutingPictures"]["dropped_CLE"][i, layer]
            assert dropped_E.tolist() == [figures[f"load/expert_{e:02d}"] - figures[f"kept/expert_{e:02d}"]
                                          for e in range(4)]  # fmt: skip


class Kept(StepCallback):
    """What a callback of one's own gets."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, tuple[MicroBatch, ...]]] = []

    def after_step(self, module: Any, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        self.steps.append((step, tuple(micro_batches)))


def test_a_callback_gets_the_routings_of_every_micro_batch_and_they_keep_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[Losses] = []
    real, callbacks_of, callback = SwitchModule.losses, run.callbacks_of, Kept()

    def noted(self: SwitchModule, *batch: Any, **group: Any) -> Losses:
        computed.append(real(self, *batch, **group))
        return computed[-1]

    monkeypatch.setattr(SwitchModule, "losses", noted)
    monkeypatch.setattr(run, "callbacks_of", lambda training: [callback, *callbacks_of(training)])
    config = short_run(tmp_path)
    config.trainer.accumulate, config.logger.log_every = 3, 99
    train(config)
    assert [(step, len(micro_batches)) for step, micro_batches in callback.steps] == [(1, 3), (2, 3)]
    given = [micro_batch for _, micro_batches in callback.steps for micro_batch in micro_batches]
    for micro_batch, losses in zip(given, computed, strict=True):
        assert micro_batch["losses"]["train/loss"] == losses.language and losses.language.requires_grad
        for routing, original in zip(micro_batch["routings"], losses.routings, strict=True):
            assert torch.equal(routing.expert_TK, original.expert_TK) and original.gate_TK.requires_grad
            assert torch.equal(routing.gate_TK, original.gate_TK)
        tensors = [value for routing in micro_batch["routings"] for value in vars(routing).values()]
        tensors += [micro_batch["loss"], *micro_batch["losses"].values()]
        assert not any(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in tensors)
