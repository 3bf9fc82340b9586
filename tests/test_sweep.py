"""Several jobs in one command: each as if alone, failures listed, one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compare import same

from switch_lm import checkpoint
from switch_lm.sweep import as_mapping, job_name

SMALL = [
    "model.num_layers=1",
    "model.d_model=16",
    "model.num_heads=2",
    "model.d_ff=16",
    "model.num_experts=2",
    "model.context_length=8",
    "model.dropout=0.1",
    "data.batch_size=4",
    "data.path=text.txt",
    "trainer.max_steps=4",
    "trainer.val_every=4",
    "logger.log_every=2",
    "logger.sample_length=0",
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    command = [sys.executable, "-m", "switch_lm.train", *arguments, *SMALL]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run(folder, "-m", "model.capacity_factor=1.0,-1,null", "seed=3")


def jobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("outputs/sweeps/*/0*"))


def test_a_failing_job_is_listed_with_its_reason_and_the_others_run(
    swept: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = swept
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    records = [json.loads((job / "job.json").read_text()) for job in jobs(folder)]
    assert [record["status"] for record in records] == ["done", "failed", "done"]
    assert records[1]["error"].startswith("model.capacity_factor=-1.0: must be a positive number")
    assert records[2]["overrides"]["model.capacity_factor"] is None
    table = done.stdout[done.stdout.rindex("Sweep") :]
    assert "job 1 FAILED: model.capacity_factor=-1.0: must be a positive number" in table
    assert "num_layers" not in table  # the same in all jobs
    assert f"{records[0]['result']['val_loss']:.4f}" in table


def test_everything_lies_under_outputs_and_a_job_is_named_by_its_overrides(
    swept: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = swept
    assert sorted(path.name for path in folder.iterdir()) == ["outputs", "text.txt"]
    assert [path.name for path in (folder / "outputs").iterdir()] == ["sweeps"]
    names = [job.name[:33] for job in jobs(folder)]
    assert names[0] == "000_capacity_factor=1.0,seed=3,nu"
    assert names[2] == "002_capacity_factor=null,seed=3,n"


def test_a_job_gives_what_the_same_run_gives_alone(swept: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = swept
    alone = run(folder, "model.capacity_factor=null", "seed=3", "name=alone")
    assert alone.returncode == 0, alone.stderr
    first = checkpoint.read(jobs(folder)[2] / "checkpoints" / "last.ckpt")
    second = checkpoint.read(folder / "outputs" / "runs" / "alone" / "checkpoints" / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(first[key], second[key]), key


def test_a_job_name_holds_nothing_that_leaves_its_folder() -> None:
    assert job_name(7, ["data.path=../../x y", "seed=1"]) == "007_data.path=.._.._x_y,seed=1"
    assert len(job_name(7, ["name=" + "a" * 500])) <= 100


def test_overrides_are_read_as_values() -> None:
    assert as_mapping(["alpha=0.1", "+x.y=null", "name=abc", "seed=3"]) == {
        "alpha": 0.1,
        "x.y": None,
        "name": "abc",
        "seed": 3,
    }
