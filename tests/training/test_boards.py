"""Boards: each shows what is in metrics.jsonl, several at once or none, also of a resumed run."""

from __future__ import annotations

import csv
import importlib.metadata
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import folder_of, logged
from kept_board import kept
from omegaconf import OmegaConf
from small_models import short_run
from sweep_runs import run as run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from switch_lm.config.boards import keys_of_board
from switch_lm.config.keys import ConfigError, at_least, key
from switch_lm.config.paths import config_dir
from switch_lm.config.rules import resolve
from switch_lm.config.schema import Config
from switch_lm.storage.run_folder import TrainingError
from switch_lm.training.boards.base import Board
from switch_lm.training.boards.registry import BOARDS
from switch_lm.training.boards.tensorboard import TensorBoard
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

OURS = ("csv", "tensorboard", "wandb")
HAS_WANDB = any(True for _ in importlib.metadata.distributions(name="wandb"))
Points = dict[str, dict[int, float]]  # by tag, then by step


def on(config: Config, *boards: str) -> Config:
    return replace(config, logger=replace(config.logger, boards={board: {} for board in boards}, sample_length=5))


def in_tensorboard(run: Path) -> Points:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {tag: {e.step: e.value for e in events.Scalars(tag) if not math.isnan(e.value)} for tag in tags}


def in_csv(run: Path) -> Points:
    points: Points = {}
    with (run / "scalars.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["step"]) not in points.setdefault(row["tag"], {})
            points[row["tag"]][int(row["step"])] = float(row["value"])
    return points


def stopped_and_resumed(config: Config, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A run that was killed in its eighth step and continued from its fifth."""
    real = SwitchModule.training_step

    def pull_the_plug(self: SwitchModule, *args: Any) -> Any:
        if self.global_step == 7:
            raise KeyboardInterrupt
        return real(self, *args)

    config.trainer.checkpoint_every = 5
    with monkeypatch.context() as patch:
        patch.setattr(SwitchModule, "training_step", pull_the_plug)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(config)
    train(replace(config, resume="run", **changes))
    return folder_of(config)


def reproducible(points: Mapping[str, Any]) -> dict[str, Any]:
    return {tag: values for tag, values in points.items() if not tag.startswith("perf/")}


# --- Each, several, none


@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed"])
def test_tensorboard_and_csv_beside_each_other_show_what_metrics_jsonl_holds(
    resumed: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on(config, "tensorboard", "csv")
    if resumed:
        run = stopped_and_resumed(config, monkeypatch)
    else:
        train(config)
        run = folder_of(config)
    points = logged(run)
    assert list(points["train/loss"]) == [2, 4, 6, 8, 10, 12]
    assert in_csv(run) == points
    shown = in_tensorboard(run)
    assert shown.keys() == points.keys()
    for tag, by_step in points.items():
        assert shown[tag] == pytest.approx(by_step, rel=1e-6), tag


def test_a_resumed_run_has_the_points_of_one_that_was_never_stopped(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(config, name="whole"))
    run = stopped_and_resumed(config, monkeypatch)
    assert reproducible(logged(run)) == reproducible(logged(run.parent / "whole"))


def test_a_clock_that_went_back_hides_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for days, steps in ((0, range(10)), (1, range(6, 15)), (2, range(12, 20))):
        monkeypatch.setattr(time, "time", lambda days=days: real() - 86400 * days)
        board = TensorBoard(tmp_path, None, config=Config(), first_step=steps[0])
        for step in steps:
            board.scalars({"loss": float(step)}, step)
        board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(step, step) for step in range(20)]


def test_tensorboard_shows_texts_histograms_pictures_and_a_row_of_the_run(config: Config) -> None:
    config = on(config, "tensorboard")
    train(config)
    events = EventAccumulator(str(folder_of(config)), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    texts = {f"{name}/text_summary" for name in ("sample", "summary/configuration", "summary/computation")}
    assert texts <= set(events.Tags()["tensors"])
    assert {"routing/load/layer_00", "routing/which_characters/layer_01"} <= set(events.Tags()["images"])
    assert [event.step for event in events.Histograms("routing/margin/layer_00")] == [5, 10, 12]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_histogram_of_a_board_has_bins_of_equal_width(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, None, config=Config(), first_step=0)
    board.histogram("margin", [3, 0, 1, 4], 5, low=0.0, high=1.0)
    board.close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Histograms("margin")
    value = event.histogram_value
    assert (value.min, value.max, value.num) == (0.0, 1.0, 8.0)
    assert (value.bucket_limit, value.bucket) == ([0.25, 0.5, 0.75, 1.0], [3.0, 0.0, 1.0, 4.0])
    assert value.sum == 3 * 0.125 + 0.625 + 4 * 0.875


def test_without_a_board_a_run_writes_metrics_jsonl_alone(tmp_path: Path) -> None:
    config = on(short_run(tmp_path))
    train(config)
    files = {path.name for path in folder_of(config).iterdir()}
    assert files == {"checkpoints", "config.yaml", "hardware.json", "metrics.jsonl", "result.json", "start.json"}
    assert list(logged(folder_of(config))["val/loss"]) == [1, 2]


def test_a_board_gets_texts_and_the_runs_row_once_a_leg_and_metrics_jsonl_numbers_alone(config: Config) -> None:
    train(config)
    shown = kept(folder_of(config))
    assert list(shown["sample"]) == [5, 10, 12] and list(shown["summary/configuration"]) == [0]
    values, metrics = shown["hparams"][0]
    assert values["seed"] == 0 and set(metrics.values()) <= logged(folder_of(config)).keys()
    assert {tag for tag in logged(folder_of(config)) if tag in shown} == set()
    train(replace(config, resume="run", trainer=replace(config.trainer, max_steps=14)))
    texts = kept(folder_of(config))["summary/configuration"]
    assert list(texts) == [0, 12] and "max_steps: 14" in texts[12]


def test_a_run_may_be_resumed_with_other_boards(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_and_resumed(on(config, "csv"), monkeypatch, logger=on(config, "tensorboard").logger)
    assert set(in_csv(run)["train/loss"]) == {2, 4, 6} and set(in_tensorboard(run)["train/loss"]) == {6, 8, 10, 12}


# --- Weights & Biases


def test_a_missing_wandb_is_refused_with_the_fix_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", no_such)
    config = on(short_run(tmp_path), "csv", "wandb")
    with pytest.raises(
        ConfigError, match=re.escape("logger=wandb: the package wandb is not installed; pip install 'sw")
    ):
        train(config)
    assert not Path(config.outputs).exists()


BLOCK = 32768  # of the log of LevelDB, which wandb writes


@pytest.mark.skipif(not HAS_WANDB, reason="no wandb: make boards")
def test_wandb_keeps_a_run_and_its_id_in_the_runs_folder_and_needs_no_network(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    run = stopped_and_resumed(on(config, "wandb"), monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "outputs"])
    number = (run / "wandb" / "id").read_text()
    first, second = sorted(run.glob("wandb/offline-run-*"))
    assert first.name.endswith(number) and second.name.endswith(number)
    stored = (second / f"run-{number}.wandb").read_bytes()  # in blocks; what goes over an edge has 7 bytes in between
    content = stored[:BLOCK] + b"".join(stored[at + 7 : at + BLOCK] for at in range(BLOCK, len(stored), BLOCK))
    points = logged(run)["val/loss"]
    assert str(points[12]).encode() in content and str(points[5]).encode() not in content
    assert any(second.glob("files/media/images/routing/which_characters/layer_00_*.png"))


# --- A board of one's own


@dataclass
class FragileOptions:
    fails_at: int = key(99, "The step at which it fails.", at_least(0))


class Fragile(Board):
    name = "fragile"
    Options = FragileOptions

    def __init__(self, run: Path, options: FragileOptions, *, config: Config, first_step: int) -> None:
        self.fails_at = options.fails_at
        if self.fails_at == 0:
            raise ValueError("no such place")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("nobody\nanswers")


@pytest.mark.parametrize(("step", "reason"), [(0, "ValueError: no such place"), (7, "ConnectionError: nobody answers")])
def test_a_board_that_fails_is_named_and_the_run_continues_without_it(step: int, reason: str, config: Config) -> None:
    config.logger.log_every, config.logger.boards = 1, {"kept": {}, "fragile": {"fails_at": step}}
    with pytest.raises(
        TrainingError, match=rf"the board fragile failed \({reason}\); to continue without it, leave it out"
    ):
        train(config)
    config.logger.boards = {"kept": {}}
    assert train(replace(config, resume="run"))["steps"] == 12
    assert list(logged(folder_of(config))["train/loss"]) == list(range(1, 13))


def test_options_of_a_board_are_checked_like_keys_and_all_at_once() -> None:
    def refused(**boards: Any) -> list[str]:
        with pytest.raises(ConfigError) as error:
            resolve(replace(Config(), logger=replace(Config().logger, boards=boards)))
        return str(error.value).splitlines()

    assert refused(fragile={"fails_at": -1}, csv={"path": 1}, nowhere={}, kept=3) == [
        "logger.boards.fragile.fails_at=-1: must be at least 0",
        "logger.boards.csv.path: no such key; csv has no options",
        f"logger.boards.nowhere: no such board; choose among {', '.join(sorted(BOARDS))}",
        "logger.boards.kept=3: must be a mapping of options; choose a board with logger=kept",
    ]
    assert refused(fragile={"fail_at": 1}) == [
        "logger.boards.fragile.fail_at: no such key; did you mean logger.boards.fragile.fails_at?"
    ]
    assert "fails_at=x: must be a whole number" in refused(fragile={"fails_at": "x"})[0]


def test_a_second_board_of_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="a board named csv exists already"):
        type("Other", (Board,), {"name": "csv"})
    assert isinstance(BOARDS["csv"], str) or BOARDS["csv"].__name__ == "Csv"


def test_a_board_whose_options_are_no_keys_is_refused_where_the_class_is_written() -> None:
    with pytest.raises(TypeError, match="Plain is not decorated with @dataclass, so its fields are no keys"):
        type("Other", (Board,), {"name": "other", "Options": type("Plain", (), {})})
    assert "other" not in BOARDS


# --- The configuration files


@pytest.mark.parametrize("name", OURS)
def test_a_boards_file_shows_its_options_with_default_and_meaning(name: str) -> None:
    text = (config_dir() / "logger" / f"{name}.yaml").read_text()
    options = OmegaConf.create(text).boards[name]
    keys = {key.name.rpartition(".")[2]: key for key in keys_of_board(name).values()}
    assert options == {name: key.default for name, key in keys.items()}
    comments = dict(re.findall(r"((?:    # .*\n)+)    (\w+):", text))
    meanings = {name: re.sub(r"\s*# ", " ", comment).strip() for comment, name in comments.items()}
    assert meanings == {name: key.meaning for name, key in keys.items()}


def test_boards_are_loaded_without_torch_and_wandb() -> None:
    code = "import sys; from switch_lm.training.boards.registry import board_class\n"
    code += f"for name in {OURS}: board_class(name)\nprint({{'torch', 'wandb', 'tensorboard'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_sweep_over_lists_of_boards_runs_and_its_jobs_repeat_each_other(tmp_path: Path) -> None:
    done = run_command(tmp_path, "-m", "logger=[csv],[csv,tensorboard],[]", "name=boards")
    assert done.returncode == 0, done.stderr
    jobs = [path for path in (tmp_path / "outputs/sweeps/boards").iterdir() if (path / "metrics.jsonl").exists()]
    files = sorted((any(job.glob("scalars.csv")), any(job.glob("events*"))) for job in jobs)
    assert files == [(False, False), (True, False), (True, True)]
    losses = [logged(job)["val/loss"] for job in jobs]
    assert losses[0] == losses[1] == losses[2]
