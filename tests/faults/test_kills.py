"""Rows 1 and 2: a run that is killed, whenever and however often, continues to the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from compare import same
from processes import SLOW_VALIDATION, Started, finished, scalars, sha256
from sweep_runs import command, run, weights

from switch_lm.storage import checkpoint

# Every noise, every optimizer and every kind of step that training has.
EVERYTHING = (
    "router.random_drop_rate=0.1", "model.expert_dropout=0.1", "router.jitter=0.05", "model.capacity_factor=1.0",
    "router.drop_order=random", "balance=sign", "optim=muon", "trainer.precision=bf16", "trainer.accumulate=2",
    "trainer.val_every=30", "trainer.checkpoint_every=6", "trainer.keep_best=3",
)  # fmt: skip
SLOW_SYNC = """
import os, time
sync = os.fsync
written = "outputs/runs/killed/checkpoints/last.ckpt"
os.fsync = lambda file: (time.sleep(0.5 * os.path.exists(written)), sync(file))
"""
SLOW_END = """
import time
from switch_lm.training import run
result_of = run.result_of
def slow(*args):
    print("trained", flush=True)
    time.sleep(0.5)
    return result_of(*args)
run.result_of = slow
"""


def run_of(folder: Path, name: str = "killed") -> Path:
    return folder / "outputs" / "runs" / name


def require_the_same(folder: Path, whole: Path, *, log_every: int = 5) -> None:
    """All that a run leaves is that of the run that was never touched, and nothing more lies about."""
    run = run_of(folder)
    assert sha256(run) == sha256(whole)
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, whole)]
    timed = ("seconds", "training_seconds", "tokens_per_second", "inference_tokens_per_second")
    for key in (*timed, "window_loss_seconds", "router_health_seconds", "routing_pictures_seconds"):
        assert all(result.pop(key) > 0 for result in results)
    assert all(result.pop("peak_memory_bytes") > 0 for result in results)
    for key in ("matmul_flops_per_second", "matmul_share"):  # null where a start had less than ten seconds of steps
        assert all((figure := result.pop(key)) is None or figure > 0 for result in results)
    assert results[0] == results[1]
    steps = [step for step, _ in scalars(whole, "train/loss")]
    assert [step for step, _ in scalars(run, "train/loss")] == steps == list(range(5, steps[-1] + 1, log_every))
    assert scalars(run, "train/loss") == scalars(whole, "train/loss")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(
        path.name for path in (whole / "checkpoints").iterdir()
    )


@pytest.mark.row(1)
@pytest.mark.long
def test_killed_ten_times_at_random_a_run_ends_with_the_bits_of_one_that_was_never_touched(tmp_path: Path) -> None:
    steps = ("trainer.max_steps=300", *EVERYTHING)  # a start gets through 24 of them at most
    (tmp_path / "whole").mkdir()
    assert finished(tmp_path / "whole", *steps, "name=killed").returncode == 0
    moments, last = random.Random(0), run_of(tmp_path) / "checkpoints" / "last.ckpt"
    for _ in range(10):
        started = Started(tmp_path, *steps, "name=killed", "resume=auto")
        started.wait_for_newer(last)
        since = time.monotonic()
        started.wait_for_newer(last)
        time.sleep(moments.uniform(0.0, time.monotonic() - since))  # anywhere on the way to the next one
        started.kill()
    assert not (run_of(tmp_path) / "result.json").exists()
    assert finished(tmp_path, *steps, "name=killed", "resume=auto").returncode == 0
    require_the_same(tmp_path, run_of(tmp_path / "whole"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 70 steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    done = finished(folder, "trainer.max_steps=70", *EVERYTHING, "name=killed")
    assert done.returncode == 0, done.stderr
    return run_of(folder)


@pytest.mark.row(1)
@pytest.mark.parametrize(
    ("moment", "before"),
    [
        pytest.param("before a checkpoint", "", marks=pytest.mark.long),
        pytest.param("on a checkpoint", SLOW_SYNC, marks=[pytest.mark.row(2)]),
        pytest.param("after a checkpoint", "", marks=pytest.mark.long),
        pytest.param("in validation", SLOW_VALIDATION, marks=pytest.mark.long),
        pytest.param("after the last step", SLOW_END),
    ],
)
def test_killed_at_a_chosen_moment_it_goes_on_to_the_same_bits(
    moment: str, before: str, tmp_path: Path, whole: Path
) -> None:
    arguments, checkpoints = ("trainer.max_steps=70", *EVERYTHING, "name=killed"), run_of(tmp_path) / "checkpoints"
    started = Started(tmp_path, *arguments, before=before)
    if moment == "before a checkpoint":
        started.wait_for_file(run_of(tmp_path), "metrics.jsonl")
    elif moment == "on a checkpoint":
        started.wait_for_file(checkpoints, "last.ckpt")
        started.wait_for_file(checkpoints, ".last.ckpt.*")
    elif moment == "after a checkpoint":
        started.wait_for_file(checkpoints, "last.ckpt")
    else:
        started.wait_for("validating" if moment == "in validation" else "trained")
    started.kill()
    assert not (run_of(tmp_path) / "result.json").exists()
    if moment == "on a checkpoint":
        assert list(checkpoints.glob(".last.ckpt.*"))
        assert checkpoint.read(checkpoints / "last.ckpt")["global_step"] > 0  # the old one still loads
    again = finished(tmp_path, *arguments, "resume=auto")
    assert again.returncode == 0, again.stderr
    require_the_same(tmp_path, whole)


@pytest.mark.row(21)
@pytest.mark.long
def test_resumed_twice_it_has_the_newest_state_and_no_files_beside(tmp_path: Path, whole: Path) -> None:
    arguments = ("trainer.max_steps=70", *EVERYTHING)
    for steps_done in (10, 40):
        started = Started(tmp_path, *arguments, "name=killed", "resume=auto", before=SLOW_VALIDATION)
        started.wait_for(f"step {steps_done}/70")
        started.kill()
    assert finished(tmp_path, *arguments, "resume=killed").returncode == 0
    require_the_same(tmp_path, whole)
    for key, reason in (("resume", "is finished"), ("name", "holds a run already")):
        refused = finished(tmp_path, *arguments, f"{key}=killed")
        assert refused.returncode == 2 and reason in refused.stderr and "Traceback" not in refused.stderr
    require_the_same(tmp_path, whole)


@pytest.mark.row(21)
@pytest.mark.long
def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    started = Started(tmp_path, "trainer.max_steps=100000", "name=both")
    started.wait_for_file(tmp_path / "outputs/runs/both/checkpoints", "last.ckpt")
    second = finished(tmp_path, "trainer.max_steps=100000", "name=both", "resume=auto")
    assert second.returncode == 2 and "another process is working there" in second.stderr
    assert started.process.poll() is None
    started.kill()


@pytest.mark.long
def test_a_killed_sweep_goes_on_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    arguments = ["-m", "seed=0,1", "trainer.max_steps=60", "trainer.val_every=30", "trainer.checkpoint_every=5"]
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        folder.mkdir()
    killed, whole = (folder / "outputs" / "sweeps" for folder in folders)
    process = subprocess.Popen(command(folders[0], *arguments), cwd=folders[0], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("*/seed1/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (job,) = killed.glob("*/seed1")
    assert not (job / "result.json").exists()  # it was killed in the middle
    assert run(folders[0], *arguments).returncode == 0
    assert run(folders[1], *arguments).returncode == 0
    (uninterrupted,) = whole.glob("*/seed1")
    assert job.parent.name == uninterrupted.parent.name  # the name follows from the command
    assert same(weights(job), weights(uninterrupted))
