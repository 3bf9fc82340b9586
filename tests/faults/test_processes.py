"""Rows 1 and 4 in several processes: one that is killed or hangs is named, a signal stops all, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from compare import same
from processes import PATIENCE, SLOW_VALIDATION, Started, finished, state

TWO = ("trainer.processes=2", "trainer.threads=2", "trainer.max_steps=60", "logger.progress=lines")
WITHIN = 10.0  # seconds until all processes have ended, on a machine that is not busy


# What a plugin does in each process, and what is then said.
FAULTS = {
    "nan": (
        """
import torch
from switch_lm.training import module
losses = module.SwitchModule.losses
def spoiled(self, ids, targets, **given):
    done = losses(self, ids, targets, **given)
    nan = self.training and self.global_step == 29 and self.global_rank == 1
    return done._replace(total=done.total * float("nan")) if nan else done
module.SwitchModule.losses = spoiled
""",
        "process 1 failed: the loss became nan at step 30",
    ),
    "validation": (
        """
from switch_lm.training import module
add = module.SwitchModule._add_to
def spoiled(self, tally, batch):
    if self.global_rank == 1:
        raise ValueError("spoiled")
    add(self, tally, batch)
module.SwitchModule._add_to = spoiled
""",
        "process 1 failed: ValueError: spoiled",
    ),
    "full disk": (
        """
import errno, os
from switch_lm.training.callbacks import checkpoints
save = checkpoints.AtomicCheckpointIO.save_checkpoint
def spoiled(self, content, path, storage_options=None):
    if content["global_step"] >= 40:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    save(self, content, path)
checkpoints.AtomicCheckpointIO.save_checkpoint = spoiled
""",
        "could not be written: No space left on device",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two processes that was never stopped: a job of a sweep."""
    folder = tmp_path_factory.mktemp("whole")
    done = finished(folder, "-m", *TWO, "name=whole", "seed=0")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "sweeps" / "whole" / "job"


def workers_of(started: Started) -> list[int]:
    """The processes that the command started."""
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"parallel.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def has_ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "zombie" in status.read_text()


@pytest.mark.row(4)
@pytest.mark.long
@pytest.mark.parametrize(("moment", "before"), [("step 10/60", ""), ("validating", SLOW_VALIDATION)])
def test_a_signal_stops_two_processes_at_one_place_and_two_of_them_continue_to_the_same_bits(
    moment: str, before: str, tmp_path: Path, whole: Path
) -> None:
    started = Started(tmp_path, *TWO, "name=run", before=before)
    started.wait_for(moment)
    (worker,) = workers_of(started)
    subprocess.run(["kill", "-TERM", "--", f"-{started.process.pid}"], check=True)  # all, as a terminal does
    assert started.end() == 143, started.output
    assert started.output.count("Stopped by SIGTERM: everything up to step ") == 1 and has_ended(worker)
    assert "Traceback" not in started.output
    assert finished(tmp_path, *TWO, "resume=run").returncode == 0
    assert same(state(tmp_path / "outputs" / "runs" / "run"), state(whole))


@pytest.mark.row(1)
@pytest.mark.long
def test_a_worker_that_is_killed_is_named_and_one_process_continues_the_run(tmp_path: Path) -> None:
    started = Started(tmp_path, *TWO, "name=run")
    started.wait_for_file(tmp_path, "outputs/runs/run/checkpoints/last.ckpt")
    (worker,), began = workers_of(started), time.monotonic()
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    assert started.end() == 1, started.output
    assert time.monotonic() - began < 3 * WITHIN and has_ended(worker)
    assert re.search(rf"process 1 \(PID {worker}\) was ended by SIGKILL\n", started.output)
    assert "The last good checkpoint: " in started.output and "resume=run" in started.output
    assert "Traceback" not in started.output
    assert finished(tmp_path, "trainer.max_steps=60", "resume=run").returncode == 0


@pytest.mark.row(1)
@pytest.mark.long
@pytest.mark.parametrize("waits", ["before the first step", "within steps"])
def test_a_worker_that_hangs_is_named_after_the_timeout(tmp_path: Path, waits: str) -> None:
    started = Started(tmp_path, *TWO, "trainer.max_steps=3000", "trainer.peer_timeout=20s", "name=run")
    if waits == "within steps":
        started.wait_for("step 50/3000")
    started.wait_until(lambda: any(workers_of(started)), "started a worker")
    (worker,) = workers_of(started)
    subprocess.run(["kill", "-STOP", str(worker)], check=True)
    assert started.process.wait(PATIENCE) == 1
    started.end()
    assert re.search(r"process 1 .*did not answer for 20 s \(trainer.peer_timeout\)", started.output)
    assert has_ended(worker)


@pytest.mark.row(1)
@pytest.mark.long
def test_a_first_process_that_hangs_is_named_and_the_others_end(tmp_path: Path) -> None:
    started = Started(tmp_path, *TWO, "trainer.max_steps=3000", "trainer.peer_timeout=20s", "name=run")
    started.wait_for("step 50/3000")
    (worker,) = workers_of(started)
    subprocess.run(["kill", "-STOP", str(started.process.pid)], check=True)
    started.wait_for(f"process 0 (PID {started.process.pid}) did not answer for 20 s (trainer.peer_timeout): ")
    started.wait_until(lambda: has_ended(worker), "lost its worker")
    subprocess.run(["kill", "-CONT", str(started.process.pid)], check=True)
    assert started.end() == 1 and "resume=run" in started.output and "Traceback" not in started.output


@pytest.mark.row(1)
@pytest.mark.long
def test_workers_end_with_the_first_process(tmp_path: Path) -> None:
    started = Started(tmp_path, *TWO, "trainer.max_steps=3000", "name=run")
    started.wait_for("step 50/3000")
    (worker,) = workers_of(started)
    started.kill()
    deadline = time.monotonic() + 3 * WITHIN
    while not has_ended(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.row(8)
@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_process_is_told_once_and_ends_all(fault: str, tmp_path: Path) -> None:
    plugin, words = FAULTS[fault]
    (tmp_path / "spoiled.py").write_text(plugin)
    started = Started(tmp_path, *TWO, "name=run", before="import os; os.environ['SWITCH_LM_PLUGINS'] = 'spoiled'")
    started.wait_until(lambda: any(workers_of(started)), "started a worker")
    (worker,) = workers_of(started)
    assert started.process.wait(PATIENCE) == 1
    started.end()
    assert started.output.count(words) == 1 and "Traceback" not in started.output and has_ended(worker)
    assert "The last good checkpoint: " in started.output
