"""Rows 17 to 19: a damaged checkpoint, or one of something else."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare import same
from conftest import MakeRun, folder_of
from processes import state

import switch_lm
from switch_lm import evaluate, generate
from switch_lm.config.keys import ConfigError
from switch_lm.config.schema import Config
from switch_lm.routers.options import TopKOptions
from switch_lm.storage import choice
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.training.callbacks.checkpoints import Best
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


class PlugPulled(BaseException):
    """Nothing in the program catches it."""


@pytest.fixture
def stopped(config: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints, best.ckpt and last.ckpt of step 10, of a run that was stopped after step 11 of 12."""
    real = SwitchModule.training_step

    def stops(self: SwitchModule, batch: object, number: int) -> object:
        if self.global_step == 11:
            raise PlugPulled
        return real(self, batch, number)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SwitchModule, "training_step", stops)
        with pytest.raises(PlugPulled):
            train(config)
    return folder_of(config) / "checkpoints"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def one_flipped_bit(path: Path) -> None:
    """In the middle of the largest tensor, where only a checksum can tell, and not between two, where nothing is."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    header = content[largest.header_offset : largest.header_offset + 30]
    start = (
        largest.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    )
    content[start + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def missing(path: Path) -> None:
    path.unlink()


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (missing, "No such file"),
    (empty, "it is empty"),
    (cut_short, "it is cut short"),
    (random_bytes, "it is cut short or something else"),
    (one_flipped_bit, "has changed since it was written"),
]


@pytest.mark.row(17)
@pytest.mark.parametrize(("harm", "reason"), DAMAGES)
def test_a_run_continues_from_its_newest_good_checkpoint_to_the_same_end(
    harm: Callable[[Path], None], reason: str, stopped: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(stopped / "last.ckpt")
    result = train(replace(config, resume="run"))
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {stopped}/last.ckpt: ") and len(warning.splitlines()) == 1
    assert reason in warning
    assert f"continuing from {stopped}/best.ckpt" in warning
    whole = train(replace(config, name="whole"))
    assert (result["val_loss"], result["best_val_loss"]) == (whole["val_loss"], whole["best_val_loss"])
    assert same(state(stopped.parent), state(stopped.parents[1] / "whole"))


@pytest.mark.row(17)
@pytest.mark.parametrize(("harm", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_reported_in_one_line_with_the_newest_good_one(
    harm: Callable[[Path], None], reason: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    best = make_run() / "checkpoints" / "best.ckpt"
    last = best.with_name("last.ckpt")
    shutil.copy(best, last)
    harm(last)
    commands = generate.main, evaluate.main
    for command in commands:
        assert command(["--run", str(last)]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert str(last) in message
        if harm is not missing:
            assert reason in message and f"the newest good one there is {best}" in message
    if harm is not missing:
        with pytest.raises(CheckpointError, match="newest good one"):
            switch_lm.load(last)


@pytest.mark.row(17)
def test_a_run_with_only_damaged_checkpoints_is_refused_and_not_changed(stopped: Path, config: Config) -> None:
    empty(stopped / "last.ckpt")
    one_flipped_bit(stopped / "best.ckpt")
    with pytest.raises(ConfigError, match=r"no checkpoint of this run can be read \(best.ckpt: .*; last.ckpt: it is"):
        train(replace(config, resume="run"))
    assert sorted(path.name for path in stopped.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.row(17)
@pytest.mark.parametrize("name", ["config.yaml", "hardware.json"])
def test_a_damaged_file_of_a_run_is_named(name: str, stopped: Path, config: Config) -> None:
    (stopped.parent / name).write_bytes(b"{\x00 not: [what")
    with pytest.raises(ConfigError, match=rf"{name} is damaged"):
        train(replace(config, resume="run"))


@pytest.mark.row(17)
@pytest.mark.parametrize("number", ["1", "2"])
def test_a_run_of_another_format_is_refused_in_one_line_that_names_it(
    number: str, stopped: Path, config: Config
) -> None:
    file = stopped.parent / "config.yaml"
    first, rest = file.read_text().split("\n", 1)
    assert first == "format: 3"
    file.write_text(rest if number == "1" else f"format: {number}\n{rest}")
    with pytest.raises(ConfigError, match=rf"config.yaml has format {number}, and .* format 3; train it again"):
        train(replace(config, resume="run"))


@pytest.mark.row(17)
def test_a_key_that_changes_no_result_may_change_on_resume(stopped: Path, config: Config) -> None:
    shown = replace(config.logger, log_every=3, sample_length=5)
    trainer = replace(config.trainer, max_time="10:00:00", checkpoint_every=3)
    health = replace(config.health, every=7)
    changed = replace(config, resume="run", router_alarm="error", logger=shown, trainer=trainer, health=health)
    assert train(changed)["steps"] == config.trainer.max_steps


@pytest.mark.row(21)
def test_a_folder_that_was_moved_keeps_what_is_known_of_its_best(tmp_path: Path) -> None:
    before, after = Best(tmp_path / "before", "best", 1), Best(tmp_path / "after", "best", 1)
    path = str(tmp_path / "before" / "best.ckpt")
    before.best_model_path, before.best_model_score = path, torch.tensor(1.5)
    before.best_k_models, before.kth_best_model_path = {path: torch.tensor(1.5)}, path
    after.load_state_dict(before.state_dict())
    moved = str(tmp_path / "after" / "best.ckpt")
    assert after.best_model_path == moved and after.best_model_score == torch.tensor(1.5)
    assert after.best_k_models == {moved: torch.tensor(1.5)}


@pytest.mark.row(21)
def test_a_folder_that_another_process_used_meanwhile_is_not_used(config: Config) -> None:
    chosen = choice.choose(config)
    train(config)
    before = (folder_of(config) / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="another process has trained here in the meantime; start the command again"):
        chosen.create(config, {})
    assert (folder_of(config) / "config.yaml").read_bytes() == before


@pytest.mark.row(18)
def test_another_configuration_is_refused_with_the_keys_that_differ_and_both_values(
    stopped: Path, config: Config
) -> None:
    model, router = replace(config.model, num_experts=8, switch_layers=[1]), TopKOptions(top_k=2)
    other = replace(config, resume="run", alpha=0.1, model=model, router=router)
    with pytest.raises(ConfigError) as refused:
        train(other)
    for line in (
        "alpha was 0.01, now 0.1",
        "model.num_experts was 4, now 8",
        "model.switch_layers was null, now [1]",
        "router.name was switch, now topk",
        "router.top_k was 1, now 2",
    ):
        assert line in str(refused.value)


@pytest.mark.row(19)
def test_a_text_of_other_characters_is_refused_on_resume(stopped: Path, config: Config) -> None:
    text = Path(str(config.data.path))
    text.write_text(text.read_text() + "Ω")
    with pytest.raises(ConfigError, match=r"last.ckpt was trained on the text with sha256 \w{64}, and .*text.txt has"):
        train(replace(config, resume="run"))


@pytest.mark.row(19)
def test_an_unknown_character_of_a_prompt_is_named(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    assert generate.main(["--prompt", "To be Ω"]) == 2
    assert "'Ω'" in capsys.readouterr().err
