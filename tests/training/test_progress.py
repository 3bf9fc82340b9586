"""What a run says of the time that is left, in its steps and in its validations."""

from __future__ import annotations

import math
import time

import pytest

from switch_lm.config.schema import Config, TrainerConfig
from switch_lm.training.callbacks import progress
from switch_lm.training.callbacks.progress import TimeLeft
from switch_lm.training.start import train


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
        assert all(line.endswith(" s left") for line in shown)
    assert lines.index(shown[-1]) > next(n for n, line in enumerate(lines) if "val/loss" in line)
