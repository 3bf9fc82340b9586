"""Rows 7, 22 and 24: jobs of a sweep, and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import folder_of
from processes import finished, sha256

from switch_lm.config.schema import Config
from switch_lm.training.start import train

STEPS = ("trainer.max_steps=20", "trainer.val_every=10")


@pytest.mark.row(7, 22)
@pytest.mark.long
def test_one_job_fails_and_the_others_equal_runs_alone(tmp_path: Path) -> None:
    done = finished(tmp_path, "-m", *STEPS, "optim.lr=0.003,1e37,0.004", "optim=adamw", "name=three")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (failed,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert failed.lstrip().startswith("2/3") and "at step" in failed  # the step at which it became infinite
    sweep = tmp_path / "outputs/sweeps/three"
    assert sorted(path.parent.name for path in sweep.glob("*/result.json")) == ["lr0.003", "lr0.004"]
    alone = finished(tmp_path, *STEPS, "optim.lr=0.004", "optim=adamw", "name=alone")
    assert alone.returncode == 0
    assert sha256(sweep / "lr0.004") == sha256(tmp_path / "outputs/runs/alone")


@pytest.mark.row(24)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(config: Config) -> None:
    runs = [replace(config, name=name, seed=seed) for name, seed in (("first", 0), ("again", 0), ("other", 1))]
    for run in runs:
        train(run)
    first, again, other = (sha256(folder_of(run)) for run in runs)
    assert first == again != other
