"""How many steps fit into a budget, and what a run and `--plan` say of their time."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import copied_process
import pytest
import torch
from compare import same
from conftest import folder_of

from switch_lm.config.durations import in_words, seconds_of
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.model.config import ModelConfig
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.optim.options import MuonOptions
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import Stopped
from switch_lm.training import budget, forecast, pace
from switch_lm.training.budget import LADDER, lengths, nearest, scaled
from switch_lm.training.callbacks import compiling, progress
from switch_lm.training.pace import AROUND, REST, Pace
from switch_lm.training.start import plan, train

Patch = pytest.MonkeyPatch
DURATIONS = {"90s": 90, "5m": 300, "1h": 3600, "1h30m": 5400, "2h0m1s": 7201, "0:05:00": 300, "00:20:00": 1200}
NO_DURATIONS = ["", "5", "0", "5min", "m", "30m1h", "1.5h", "-5m", "5 m", "0:5:00", "five", "00:60:00"]


@pytest.mark.parametrize(("text", "seconds"), [*DURATIONS.items(), *((text, None) for text in NO_DURATIONS)])
def test_a_duration_has_units_or_is_a_clocks_time_for_every_key(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds or (seconds is None and seconds_of(text) != seconds_of(text))
    if seconds is not None:
        assert TrainerConfig(max_time=text).max_seconds() == seconds


def test_a_time_is_rounded_to_what_a_reader_can_use() -> None:
    assert [in_words(one) for one in (0.2, 90, 119, 840, 5400)] == ["1 s", "90 s", "119 s", "14 minutes", "1.5 hours"]


@pytest.mark.parametrize(
    ("recipe", "steps"), [(60, [60]), (200, [200]), (400, [200, 300, 400]), (1800, [*LADDER[:8], 1800])]
)
def test_the_steps_to_choose_from_are_those_of_the_ladder_below_the_recipe_and_its_own(recipe: int, steps: Any) -> None:
    assert lengths(recipe) == steps


def of(max_steps: int, val_every: int, warmup: int) -> Config:
    trainer = TrainerConfig(max_steps=max_steps, val_every=val_every, budget="5m")
    return Config(trainer=trainer, optim=MuonOptions(warmup_steps=warmup))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ((1800, 300, 20), (1200, 200, 20)),
        ((1800, 300, 20), (200, 34, 10)),  # 6 validations; a twentieth of the steps
        ((1800, 300, 20), (1800, 300, 20)),
        ((2000, 500, 2000), (300, 75, 300)),  # the whole run is warm-up
        ((2000, 500, 100), (600, 150, 30)),
        ((2000, 5000, 0), (200, 200, 0)),  # one validation, at the end
        ((15600, 1300, 20), (5200, 434, 20)),
    ],
)
def test_a_shorter_run_has_as_many_validations_and_a_warm_up_in_proportion(recipe: Any, expected: Any) -> None:
    run = scaled(config := of(*recipe), expected[0])
    assert (run.trainer.max_steps, run.trainer.val_every, run.optim.warmup_steps) == expected
    assert run.trainer.budget is None and config == of(*recipe)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({200: 100, 300: 150, 400: 200}, 400),  # all fits
        ({200: 100, 300: 250, 400: 380}, 400),  # 380 is 1.20 x the budget, and 250 is 1 / 1.26 of it
        ({200: 250, 300: 400, 400: 500}, 200),
        ({200: 305, 300: 400, 400: 500}, 200),
        ({200: 500, 300: 700, 400: 900}, 200),  # not even these fit
        ({200: 60, 9000: 1000}, 200),  # the nearest by ratio, but far over
    ],
)
def test_the_steps_nearest_the_budget_are_taken_and_none_far_over_it(seconds: Any, chosen: int) -> None:
    assert nearest(seconds, 316.0) == chosen


def test_a_run_takes_its_steps_validations_measurements_and_checkpoints() -> None:
    config = of(10, 4, 2)
    config.trainer.checkpoint_every, config.health.every = 5, 3
    pieces: dict[str, Any] = {"sample": 100, "pictures": 200, "windows": 1e4, "check": 1e5, "write": 1e6}
    seconds = Pace(1.0, 3.0, 2, compiled_step=0.5, compiling=7.0, **pieces)
    # Validations after 4, 8 and 10 of two batches, and the last evaluation; five writes and three at each of them.
    assert seconds.seconds(config, compiles=False) == pytest.approx(
        AROUND * 10 + 3e5 + (4 * 2 * 3 + 3 * 300 + 1e4) + 11e6 + REST
    )
    assert seconds.parts(config, compiles=True, done=8)["steps"] == pytest.approx(AROUND * 2 * 0.5)
    assert seconds.parts(config, compiles=True, done=10)["compiling"] == 0
    assert (seconds.times(2.0).step, seconds.times(2.0).sample) == (2.0, 100)


def last(config: Config) -> dict[str, Any]:
    return checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("precision", "times"), [("fp32", 1.35), ("bf16", 1.0)])
def test_in_float32_a_step_takes_longer_once_routers_keep_all_choices(precision: str, times: float) -> None:
    """Nearly all of the model are experts, half of whose choices are kept: half of what is to come counts."""
    config = Config(model=ModelConfig(num_layers=1, num_experts=2, d_ff=128 * 64, context_length=8))
    hardware = SimpleNamespace(device="cpu", precision=precision)
    training: Any = SimpleNamespace(config=config, vocab_size=10, hardware=hardware)
    with torch.no_grad():
        layer = SwitchFeedForward(d_model=8, d_ff=8, num_experts=2, capacity_factor=1.0).train()
        torch.as_tensor(layer.router.w_DE).zero_()
        routing = layer(torch.ones(1, 8, 8))[1]  # all to the first expert, which has half of the slots
    assert pace.settling(training, [(routing,)]) == pytest.approx(times, rel=0.12)


def test_a_budget_gives_the_run_with_the_keys_that_it_prints(config: Config, monkeypatch: Patch, capsys: Any) -> None:
    monkeypatch.setattr(budget, "LADDER", (4, 8))
    monkeypatch.setattr(budget, "nearest", lambda seconds, limit: 8)
    train(replace(config, trainer=replace(config.trainer, budget="1m")))
    [keys] = re.findall(r"to repeat this run: (.*)\n", capsys.readouterr().out)
    assert keys == "trainer.max_steps=8 trainer.val_every=4 optim.warmup_steps=2"
    trainer = replace(config.trainer, max_steps=8, val_every=4)
    alike = replace(config, trainer=trainer, optim=replace(config.optim, warmup_steps=2), name="alike")
    train(alike)
    first, second = last(config), last(alike)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(first[key], second[key]), key
    stored = [(folder_of(one) / "config.yaml").read_text() for one in (config, alike)]
    assert stored[0].replace("name: run\n", "") == stored[1].replace("name: alike\n", "")


@pytest.mark.parametrize(("limit", "said"), [("1s", "even 12 steps take"), ("10h", "all 12 steps take")])
def test_where_nothing_is_chosen_it_says_why(limit: str, said: str, config: Config, capsys: Any) -> None:
    config.trainer.budget, config.logger.progress = limit, "lines"
    started = time.monotonic() - 60
    assert train(config, started=started)["steps"] == 12
    printed = capsys.readouterr().out
    assert printed.index("timing a few steps, to choose how many") < printed.index(said)
    assert "to repeat" not in printed and " on this machine" not in printed


def test_a_stop_while_it_times_leaves_nothing_behind(config: Config, monkeypatch: Patch) -> None:
    monkeypatch.setattr(pace.Trial, "eager", Mock(side_effect=KeyboardInterrupt))
    config.trainer.budget = "5m"
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert not Path(config.outputs).exists()


@pytest.mark.parametrize("arguments", [["experiment=capacity_sweep"], ["resume=some", "--plan"]], ids=" ".join)
def test_a_budget_with_a_sweep_or_resume_is_refused_at_once(arguments: list[str], tmp_path: Path) -> None:
    done = copied_process.run("switch_lm.train", *arguments, "trainer.budget=5m", folder=tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert "trainer.budget=5m: cannot be used" in done.stderr and "switch_lm.train --plan" in done.stderr


def test_a_job_can_have_neither_a_budget_nor_a_resume(config: Config, tmp_path: Path) -> None:
    for key, one in (
        (r"trainer\.budget=5m", replace(config, trainer=replace(config.trainer, budget="5m"))),
        ("resume=run", replace(config, resume="run")),
    ):
        with pytest.raises(ConfigError, match=f"{key}: cannot be used in a sweep"):
            train(one, folder=tmp_path / "sweep" / "job")
    assert not (tmp_path / "sweep").exists()


SMALL = ("model.num_layers=1", "model.d_model=16", "model.num_heads=1", "model.d_ff=8", "model.context_length=16",
         "data.path=text.txt", "trainer.compile=false")  # fmt: skip
PLANS = {
    "trainer.budget=1s": ["What will be trained", "max_steps=200 trainer.val_every=34", "200 steps of 512"],
    "-m seed=0,1 trainer.max_steps=30,60": ["Sweep of 4 jobs", "seed=1 trainer.max_steps=60: 60 steps, about"],
    "experiment=alpha_sweep variant=dense seed=0,0": ["0, 0 are equal: run once", "alpha=0.1: 250 steps, about"],
}


@pytest.mark.parametrize("arguments", PLANS)
def test_a_plan_says_how_long_a_command_takes_and_writes_nothing(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 60)
    done = copied_process.run("switch_lm.train", *arguments.split(), "--plan", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(said in done.stdout for said in PLANS[arguments])
    assert re.search(r"^about [\d.]+ \w+ on this machine", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_stopped_run_is_continued_with_the_keys_and_without_the_budget(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 1000)
    given = ("trainer.max_steps=900", "trainer.budget=1s", "trainer.max_time=1s", "data.batch_size=512", "name=run")
    done = copied_process.run("switch_lm.train", *given, *SMALL, folder=tmp_path)
    assert done.returncode == 0 and "Stopped at trainer.max_time" in done.stderr
    [line] = re.findall(r"to continue: (.*)", done.stderr)
    again = "trainer.max_steps=200 trainer.val_every=67 optim.warmup_steps=10 resume=run"  # 3 validations of 300 steps
    assert line.endswith(again) and "budget" not in line and "max_steps=900" not in line


def test_a_plan_of_a_resumed_run_counts_what_is_left(config: Config, monkeypatch: Patch, capsys: Any) -> None:
    monkeypatch.setattr(TrainerConfig, "max_seconds", lambda self: 0.0)
    with pytest.raises(Stopped):
        train(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.outputs).rglob("*")}
    plan(replace(config, name=None, resume="run"))
    assert "11 of 12 steps are left: about " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(config.outputs).rglob("*")} == before


@pytest.mark.parametrize(
    ("seconds", "run", "said"),
    [
        (20.0, {}, "about 20 s on this machine"),
        (840.0, {}, "about 14 minutes on this machine; trainer.budget=5m would end sooner"),
        (840.0, {"resumes_from": "last.ckpt"}, "about 14 minutes on this machine"),
        (840.0, {"sweep": "a sweep"}, "about 14 minutes on this machine"),
    ],
)
def test_a_long_run_that_can_be_shorter_names_the_budget(seconds: float, run: dict[str, Any], said: str) -> None:
    of_run = Mock(**{"resumes_from": None, "sweep": None} | run)
    training: Any = SimpleNamespace(started=time.monotonic(), run=of_run, config=Config())
    assert forecast.line(training, seconds) == said


@pytest.mark.parametrize("style", ["lines", "none"])
def test_a_run_says_once_after_its_first_steps_how_long_it_takes(
    style: str, config: Config, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SOON", 0.0)
    config.logger.progress = style
    train(config)
    lines = capsys.readouterr().out.splitlines()
    said = [number for number, line in enumerate(lines) if re.fullmatch(r"about \d+ s on this machine", line)]
    assert len(said) == (style == "lines")
    assert not said or (lines[said[0] - 1].startswith("step 2/12") and lines[said[0] + 1].startswith("step 4/12"))


def test_a_compiled_run_says_it_before_compiling_and_computes_the_same(
    config: Config, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "compile_blocks", lambda model: None)
    config.trainer.compile, config.logger.progress = "true", "lines"
    train(config)
    printed = capsys.readouterr().out
    assert printed.index(" s on this machine") < printed.index("compiling the training step")
    assert printed.count(" on this machine") == 1
    monkeypatch.setattr(forecast, "say_before_compiling", lambda training: None)
    train(silent := replace(config, name="silent"))
    for key in ("state_dict", "optimizer_states"):
        assert same(last(config)[key], last(silent)[key]), key
