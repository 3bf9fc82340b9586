"""Whole runs of a small model: what they write, how they resume, what they reproduce."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from compare import same
from conftest import folder_of, logged
from small_models import family
from some_steps import train_steps

import switch_lm
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.measure.evaluation import EvaluationTally
from switch_lm.model.transformer import SwitchLM
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import Stopped, read_config
from switch_lm.training.callbacks import progress
from switch_lm.training.callbacks.progress import ConsoleProgress, TimeLeft
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


def state(config: Config) -> dict[str, Any]:
    return checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")


def test_a_run_writes_a_result_a_configuration_checkpoints_and_a_model_to_load(config: Config) -> None:
    result = train(config)
    run = folder_of(config)
    assert json.loads((run / "result.json").read_text()) == result
    assert (result["steps"], result["seed"], result["name"]) == (12, 0, "run")
    assert result["parameters"] == config.model.num_params(25, config.router) > result["active_parameters"]
    assert result["best_val_loss"] <= result["val_loss"] + 1e-6 < 3.3
    assert 0 < result["dropped"] < 0.5 and result["tokens_per_second"] > 0
    assert result["matmul_flops_per_second"] is result["matmul_share"] is None  # steps of less than ten seconds
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    model, vocabulary = switch_lm.load(run)
    assert len(vocabulary) == model.vocab_size == 25 and not model.training
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12


def test_the_last_step_is_validated_and_val_loss_is_the_language_loss_of_the_whole_split(config: Config) -> None:
    from switch_lm.measure.evaluation import evaluate

    result = train(config)
    model, vocabulary = switch_lm.load(folder_of(config) / "checkpoints" / "last.ckpt")
    ids = vocabulary.encode(Path(str(config.data.path)).read_text())
    ids = ids[int(0.9 * len(ids)) :]
    precision = result["hardware"]["precision"]
    whole = evaluate(model, ids, context_length=16, batch_size=8, capacity_factor=None, precision=precision)
    assert result["val_loss"] == pytest.approx(whole.loss, abs=1e-6)
    assert whole.predictions == len(ids) - 1


def test_every_quantity_is_logged_once_at_rising_steps(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.logger.progress = "bar"
    train(config)
    bar = capsys.readouterr().out.partition("Result")[0]  # its last state
    for part in (r"evaluating 100%", r"12/12", r"training loss \d\.\d{3}", r"elapsed 0:00:\d\d\n",
                 r"\d characters/s", r"validation loss \d\.\d{3}", r"left \d+ s"):  # fmt: skip
        assert re.search(part, bar), (part, bar)
    points = logged(folder_of(config))
    per_layer = {"dropped_share", "load_max_over_mean", "load_min_over_mean", "entropy_share"}
    per_expert = {f"{q}/expert_{e:02d}" for q in ("load", "kept") for e in range(4)}
    assert {f"moe/layer_{i:02d}/{name}" for i in (0, 1) for name in per_layer | per_expert} <= points.keys()
    for tag in ("train/loss", "moe/balance_loss"):
        assert list(points[tag]) == [2, 4, 6, 8, 10, 12]
    assert list(points["val/loss"]) == [5, 10, 12]
    assert {"optim/gradient_norm", "optim/lr_0", "perf/tokens_per_second"} <= points.keys()
    groups = {tag.split("/")[0] for tag in points}
    assert groups == {"train", "val", "moe", "optim", "perf"}  # no check of the routers yet
    selected, kept = (sum(points[f"moe/layer_00/{q}/expert_{e:02d}"][2] for e in range(4)) for q in ("load", "kept"))
    assert selected == 8 * 16
    assert kept == pytest.approx((1 - points["moe/layer_00/dropped_share"][2]) * selected)


def test_a_seed_gives_the_same_run_whatever_ran_before_and_another_seed_another_run(config: Config) -> None:
    train(config)
    torch.rand(5)
    again = replace(config, name="again", logger=replace(config.logger, sample_length=0))
    train(again)
    other = replace(config, name="other", seed=1)
    train(other)
    assert same(state(config)["state_dict"], state(again)["state_dict"])
    assert same(state(config)["optimizer_states"], state(again)["optimizer_states"])
    assert not same(state(config)["state_dict"], state(other)["state_dict"])


class PlugPulled(BaseException):
    """Nothing in the program catches it."""


def test_a_finished_run_is_trained_longer_in_a_leg_that_resumes_with_the_same_bits(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.optim = replace(config.optim, averages=["tail_0.4"], min_factor=0.5)
    config.trainer.keep_best, config.logger.log_every = 2, 1
    run, first = folder_of(config), train(config)
    with pytest.raises(ConfigError, match=r"is finished; .* trainer.max_steps=N, N above its 12$"):
        train(replace(config, resume="run"))
    shutil.copytree(run, run.with_name("whole"))
    longer = replace(config, resume="run", trainer=replace(config.trainer, max_steps=24, val_every=8))
    whole = replace(longer, name="whole", resume="whole")
    want = train(whole)
    train_steps(longer, 14)  # before the leg's first checkpoint the run is as it was
    assert json.loads((run / "result.json").read_text()) == first and read_config(run)["trainer.max_steps"] == 12
    train_steps(longer, 18)
    assert json.loads((run / "result_000012.json").read_text()) == first and not (run / "result.json").exists()
    again = replace(longer, optim=replace(config.optim, on_resume="decay"))  # which is said for a new leg alone
    got = train(again)
    assert {key: got[key] for key in ("val_loss", "val_loss_averaged", "dropped_whole_run", "legs")} == {
        key: want[key] for key in ("val_loss", "val_loss_averaged", "dropped_whole_run", "legs")
    }
    for key in ("state_dict", "optimizer_states", "averages"):
        assert same(state(again)[key], state(whole)[key]), key
    spans = [(leg["first_step"], leg["last_step"], leg["schedule"].partition(":")[0]) for leg in got["legs"]]
    assert spans == [(1, 12, "from 0 to lr in 3 steps, then linear to 0.5 x lr at step 12"), (13, 24, "rewarm")]
    points = logged(run)
    assert list(points["val/loss"]) == [5, 10, 12, 16, 24] and points["val/loss"][24] == got["val_loss"]
    assert points["val/loss"][12] == first["val_loss"] and list(points["train/loss"]) == list(range(1, 25))
    assert got["val_loss_averaged"] != first["val_loss_averaged"]
    rates = {step: rate / config.optim.lr for step, rate in points["optim/lr_0"].items()}
    assert [rates[step] for step in (12, 13, 14, 24)] == pytest.approx([0.5, 0.75, 1.0, 0.5])


@pytest.mark.parametrize(
    ("last_step", "router"),  # a threshold warms up in the first four steps
    [*((step, "switch") for step in (3, 4, 5, 7, 10)), (3, "threshold"), (7, "expert_choice"), (5, "sigmoid")],
)
def test_a_resumed_run_reaches_the_end_of_one_that_was_never_stopped(
    config: Config, last_step: int, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.router = family(router)
    config.balance.name = "quantile" if router == "sigmoid" else "loss"
    config.trainer.accumulate, config.optim.averages = 2, [0.9, "tail_0.4"]  # the last five steps
    whole = replace(config, name="whole")
    want = train(whole)
    real = SwitchModule.training_step

    def stops(self: SwitchModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == last_step:
            raise PlugPulled
        return real(self, batch, batch_idx)

    monkeypatch.setattr(SwitchModule, "training_step", stops)
    with pytest.raises(PlugPulled):
        train(config)
    monkeypatch.setattr(SwitchModule, "training_step", real)
    got = train(replace(config, name=None, resume="auto"))
    assert got["name"] == "run"
    for key in ("val_loss", "best_val_loss", "dropped", "steps", "val_loss_averaged"):
        assert got[key] == want[key], key
    for key in ("state_dict", "optimizer_states", "averages"):
        assert same(state(config)[key], state(whole)[key]), key
    stored = {name.rpartition(".")[2]: value for name, value in state(whole)["state_dict"].items()}
    if router in ("threshold", "expert_choice"):
        assert (int(stored["steps"]), int(stored.get("warmup", 4)), len(stored["cutoff_E"].unique())) == (12, 4, 4)
    points = logged(folder_of(config))
    for tag in ("train/loss", "perf/tokens_per_second"):
        assert list(points[tag]) == [2, 4, 6, 8, 10, 12]
    assert list(points["val/loss"]) == [5, 10, 12]


def test_a_run_that_began_on_a_gpu_continues_on_the_cpu_with_one_line(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("switch_lm.training.module.evaluate_at_capacity", Mock(side_effect=PlugPulled))
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        with pytest.raises(PlugPulled):
            train(config)
    with pytest.raises(RuntimeError, match="CUDA"):  # it was written as from a GPU
        torch.load(folder_of(config) / "checkpoints" / "last.ckpt", weights_only=True)
    stored = folder_of(config) / "hardware.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"device": "cuda", "name": "a GPU"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = train(replace(config, name=None, resume="auto"))
    assert (result["name"], result["steps"], result["hardware"]["device"]) == ("run", 12, "cpu")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert "trainer.device was cuda (a GPU), now cpu (" in line and "not be bit-identical" in line


CALLS = {  # the method in which it is stopped, in which call, and how many steps are done by then
    "before the first step": (SwitchModule, "validation_step", 4, 0),
    "in the first validation": (SwitchModule, "validation_step", 4, 8),
    "after the last batch of the first one": (SwitchModule, "validation_step", 10, 8),
    "in the second validation": (SwitchModule, "validation_step", 12, 12),
    "between a validation and its checkpoint": (ConsoleProgress, "on_validation_end", 1, 8),
    "while a sample is written": (SwitchLM, "new_cache", 1, 8),
    "in the last evaluation": (EvaluationTally, "add", 3, 12),
    "in that of an average": (EvaluationTally, "add", 13, 12),
}


@pytest.mark.parametrize(
    ("moment", "asked"), [*((moment, True) for moment in CALLS), *((moment, False) for moment in [*CALLS][1::3])]
)
def test_a_run_stopped_in_a_validation_goes_on_there_and_ends_with_the_same_bits(
    moment: str, asked: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.trainer.val_every, config.data.batch_size = 8, 4  # two validations of 10 batches, 12 steps
    averages = config.optim.averages = [0.9, "tail_0.4"] if "average" in moment else []
    owner, stopped_in, at_call, steps_done = CALLS[moment]
    if steps_done == 0:  # there is one before the first step
        train(replace(config, name="dense", model=replace(config.model, switch_every=0)))
        config.init_from = "dense"
    whole, calls = replace(config, name="whole"), Counter[str]()
    want = train(whole)

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            result = real(*args, **kwargs)
            if (name, calls[name], calls["stops"]) == (stopped_in, at_call, 0):
                calls["stops"] += 1
                if not asked:
                    raise PlugPulled
                signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(owner, name, counted)

    count(owner, stopped_in)
    count(SwitchModule, "training_step")
    with pytest.raises(Stopped if asked else PlugPulled):
        train(config)
    assert (calls[stopped_in], calls["training_step"]) == (at_call, steps_done)
    got = train(replace(config, resume="auto"))
    assert calls["training_step"] == 12  # none was done twice
    if asked and stopped_in in ("validation_step", "add"):  # nor was a batch
        passes = 3 - (steps_done > 0) - (stopped_in == "add") + len(averages)
        assert calls[stopped_in] == 10 * passes
    assert timeless(got) == timeless(want)
    assert all(same(state(config).get(key), state(whole).get(key)) for key in ("state_dict", "averages"))
    assert timeless(logged(folder_of(config))) == timeless(logged(folder_of(whole)))


def timeless(figures: dict[str, Any]) -> dict[str, Any]:
    others = ("name", "peak_memory_bytes")
    return {name: value for name, value in figures.items() if "second" not in name and name not in others}


def test_a_dense_model_trains_on_the_same_path(config: Config) -> None:
    config.model.switch_every = 0
    result = train(config)
    assert result["dropped"] is None and result["parameters"] == result["active_parameters"]


@pytest.mark.parametrize(
    ("length", "context_length", "message"),
    [
        (35, 16, "the training split has 31 characters; 2 windows of model.context_length=16 need at least 32; "),
        (
            10,
            1,
            "the validation split has 1 character; it needs at least 2; use a longer text",
        ),
    ],
)
def test_a_text_that_is_too_short_is_refused_and_the_short_split_is_named(
    length: int, context_length: int, message: str, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("ab" * (length // 2) + "c" * (length % 2))
    config.model.context_length = context_length
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(config)
    assert not Path(config.outputs).exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++ (on Debian: apt install g++)")
def test_compiled_blocks_give_the_losses_of_eager_blocks(config: Config) -> None:
    config.trainer.precision = "fp32"
    config.router.jitter, config.model.dropout = 0.0, 0.0  # compiled code draws other random numbers
    eager = train(config)
    config.trainer.compile = "true"
    compiled = train(replace(config, name="compiled"))
    assert compiled["hardware"]["compile"]
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], abs=1e-3)


def test_if_the_compiler_fails_training_continues_and_the_console_says_why(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler\nand much more text")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fails)
    config.trainer.compile, config.logger.progress = "true", "lines"
    result = train(config)
    assert result["steps"] == 12
    assert "continuing without it" in capsys.readouterr().out
    assert not result["hardware"]["compile"]
    assert "no compiler" in result["hardware"]["compile_reason"]


def test_the_time_left_counts_every_step_validation_and_the_last_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    left = TimeLeft(TrainerConfig(max_steps=25, val_every=10), num_batches=100)
    assert math.isnan(left.seconds(0))
    now = 3.0
    left.begin_step()
    left.end_step()
    # 24 steps of 3 s; after steps 10, 20 and 25 and at the end 100 batches of a third of that.
    assert left.seconds(1) == pytest.approx(24 * 3 + 4 * 100 * 1)
    now = 203.0
    for _ in range(2):
        left.end_batch()
    assert left.seconds(10, batches_left=98) == pytest.approx(15 * 3 + (98 + 3 * 100) * 100)
    now = 223.0  # what a validation does at its end is its own
    left.begin_step()
    assert left.seconds(20) == pytest.approx(5 * 3 + 2 * 100 * 110)
    assert left.seconds(25, batches_left=-40) == pytest.approx(60 * 110)  # in the last evaluation


def test_a_long_validation_shows_how_far_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    config.trainer.val_every, config.data.batch_size, config.logger.progress = 12, 4, "lines"  # 10 batches
    train(config)
    lines = capsys.readouterr().out.splitlines()
    for what in ("validating", "evaluating with the capacity of training"):
        shown = [line for line in lines if line.startswith(f"step 12/12  {what}: ")]
        assert [line.split(": ")[1].split("%")[0] for line in shown] == [str(10 * tenth) for tenth in range(1, 11)]
        assert all(re.search(r"  elapsed 0:00:\d\d  left \d+ s$", line) for line in shown)
    assert lines.index(shown[-1]) > next(n for n, line in enumerate(lines) if "val/loss" in line)
