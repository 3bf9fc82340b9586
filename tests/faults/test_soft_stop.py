"""Rows 4, 5 and 6: a run that is asked to stop saves everything, says how to continue, and reaches the same end."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from compare import same
from copied_process import Done, run
from processes import PATIENCE, SLOW_VALIDATION, TEXT, Started, command, finished, scalars, state

from switch_lm.config.paths import interpreter
from switch_lm.storage.run_folder import Stopped
from switch_lm.sweep.jobs import read_jobs

STEPS = "trainer.max_steps=300"
SLOW_START = """
import time
from switch_lm.training.callbacks.dashboard import Dashboard
def slow(self, *args):
    print("starting", flush=True)
    time.sleep(0.5)
Dashboard.on_train_start = slow
"""
MEASURED = """
import atexit, resource
from switch_lm.training import run
from switch_lm.training.module import SwitchModule
step = SwitchModule.validation_step
def measured(self, batch, number):
    step(self, batch, number)
    print("validating", flush=True) if number == 3 else None
SwitchModule.validation_step = measured
atexit.register(lambda: print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
print("imported", flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert finished(folder, STEPS, "name=whole").returncode == 0
    return folder / "outputs" / "runs" / "whole"


def line_to_continue(output: str) -> str:
    (line,) = (line for line in output.splitlines() if line.startswith("to continue: "))
    return line.removeprefix("to continue: ")


def continued(line: str, folder: Path) -> Done:
    """What comes of a printed line, typed there."""
    python, flag, *words = shlex.split(line)
    assert (Path(python).absolute(), flag) == (
        Path(interpreter()).absolute(),
        "-m",
    )  # which is relative in some folders
    return run(*words, folder=folder)


@pytest.mark.row(4, 5)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
        pytest.param(signal.SIGXCPU, 152, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_the_run_at_a_step_and_the_printed_line_continues_it_to_the_same_end(
    number: signal.Signals, code: int, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "outputs" / "runs" / "stopped"
    started = Started(tmp_path, STEPS, "name=stopped")
    started.wait_for("step 30/300")
    assert started.end(number) == code, started.output
    assert "Traceback" not in started.output and f"Stopped by {number.name}: everything up to step " in started.output
    step = state(run)[-1]
    assert 30 <= step < 300 and f"up to step {step} of 300 is saved in outputs/runs/stopped" in started.output
    assert [at for at, _ in scalars(run, "train/loss")] == list(range(5, step + 1, 5))  # flushed to the last one

    line = line_to_continue(started.output)
    again = continued(line, tmp_path)
    assert again.returncode == 0, again.stderr
    assert same(state(run), state(whole))
    assert [at for at, _ in scalars(run, "train/loss")] == list(range(5, 301, 5))
    assert [at for at, _ in scalars(run, "val/loss")] == list(range(50, 301, 50))


@pytest.mark.row(4, 5)
@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_ends_the_run_at_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    started = Started(tmp_path, STEPS, "name=stopped", "trainer.accumulate=3", before=SLOW_START)
    started.wait_for("starting")
    assert started.end(number) == code, started.output
    assert "no step was done since the start, so nothing is lost" in started.output
    assert "Traceback" not in started.output and line_to_continue(started.output)
    assert not list((tmp_path / "outputs/runs/stopped/checkpoints").iterdir())


@pytest.mark.row(6)
@pytest.mark.long
def test_a_signal_in_the_last_validation_of_a_job_ends_the_sweep_in_it(tmp_path: Path) -> None:
    sweep = ("-m", "trainer.max_steps=10", "trainer.val_every=10", "seed=0,1,2", "name=three")
    started = Started(tmp_path, *sweep, before=SLOW_VALIDATION)
    started.wait_for("validating")
    assert started.end(signal.SIGTERM) == 143 and "Traceback" not in started.output, started.output
    assert "jobs done: none; not done: 1, 2, 3\nthe same command continues: " in started.output
    assert started.output.count("validating") == 1  # it has three batches


def test_a_worker_sends_a_stop_to_the_process_that_started_it() -> None:
    stop = pickle.loads(pickle.dumps(Stopped("why", run="x", code=143)))
    assert (str(stop), stop.run, stop.code) == ("why", "x", 143)


@pytest.mark.row(5)
@pytest.mark.long
def test_ctrl_c_twice_leaves_at_once(tmp_path: Path) -> None:
    started = Started(tmp_path, STEPS, "name=stopped", "trainer.accumulate=50")  # a step takes half a second
    started.wait_for("step 15/300")
    time.sleep(0.2)  # the line is printed just before the step's end: now the next step is under way
    assert started.end(signal.SIGINT, signal.SIGINT) == 130, started.output
    assert started.output.count("step 15/300") == 1  # and not once for each micro-batch
    assert "Traceback" not in started.output and "Stopped by SIGINT: what its last checkpoint holds" in started.output
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.row(4)
@pytest.mark.long
def test_when_the_time_is_up_the_run_ends_with_a_line_that_continues_it(tmp_path: Path, whole: Path) -> None:
    stopped = finished(tmp_path, STEPS, "name=stopped", "trainer.max_time=00:00:01", "trainer.accumulate=1")
    assert stopped.returncode == 0 and "Stopped at trainer.max_time: everything up to step " in stopped.stderr
    run, starts = tmp_path / "outputs" / "runs" / "stopped", 1
    while not (run / "result.json").exists():  # each start has a second of its own
        line = line_to_continue(stopped.stderr)
        before = state(run)[-1]
        stopped = continued(line, tmp_path)
        assert stopped.returncode == 0, stopped.stderr
        assert state(run)[-1] >= before  # a slow machine may spend a second within one validation
        starts += 1
        assert starts < 100
    assert starts > 1 and same(state(run), state(whole))


@pytest.mark.row(6)
@pytest.mark.long
def test_a_signal_ends_a_sweep_and_the_jobs_done_and_not_done_are_named(tmp_path: Path) -> None:
    sweep = ("-m", "trainer.max_steps=150", "seed=0,1,2", "name=three")
    started = Started(tmp_path, *sweep)
    started.wait_for("1/3")  # its row
    started.wait_for_file(tmp_path / "outputs/sweeps/three/seed1/checkpoints", "last.ckpt")
    assert started.end(signal.SIGTERM) == 143 and "Traceback" not in started.output, started.output
    named = r"jobs done: 1; not done: 2, 3\nthe same command continues: \S*python\S* -m switch_lm.train "
    assert re.search(named, started.output)
    assert 20 <= state(tmp_path / "outputs/sweeps/three/seed1")[-1] < 150
    again = finished(tmp_path, *sweep)
    assert again.returncode == 0 and "before" in again.stdout
    alone = finished(tmp_path, "trainer.max_steps=150", "seed=1", "name=alone")
    assert alone.returncode == 0
    assert same(state(tmp_path / "outputs/sweeps/three/seed1"), state(tmp_path / "outputs/runs/alone"))


@pytest.mark.row(4)
@pytest.mark.long
def test_twenty_million_characters_take_three_bytes_each_and_a_signal_acts_in_their_validation(tmp_path: Path) -> None:
    peaks = []
    for length in (1_000_000, 20_000_000):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "text.txt").write_text((TEXT * (length // len(TEXT) + 1))[:length])
        run = Started(folder, "trainer.max_steps=2", before=MEASURED)
        for mark, within in (("imported", 60), ("What will be trained", 5), ("validating", 60)):
            began = time.monotonic()
            run.wait_for(mark)
            assert time.monotonic() - began < within, mark
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("Stopped by SIGTERM: everything up to step 2 of 2 is saved")
        assert time.monotonic() - began < within + 2
        assert run.process.wait(60) == 143
        run.wait_for("peak")
        peaks.append(1024 * int(re.findall(r"peak (\d+)", run.output)[0]))
    assert peaks[1] - peaks[0] < 3 * 19_000_000


@pytest.mark.row(4)
@pytest.mark.long
@pytest.mark.parametrize(("ignored", "code"), [(False, 129), (True, 0)])
def test_a_terminal_that_is_closed_ends_the_run_saved_and_under_nohup_it_goes_on(
    ignored: bool, code: int, tmp_path: Path
) -> None:
    words = command(tmp_path, STEPS, "name=closed", "logger.progress=auto")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        os.execv(words[0], words)
    output = b""
    while b"val/loss" not in output:
        output += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    step = state(tmp_path / "outputs/runs/closed")[-1]
    assert step == 300 if ignored else 50 <= step < 300


@pytest.mark.row(6)
@pytest.mark.long
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_signal_makes_every_worker_of_joblib_save_its_job(whole_group: bool, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.checkpoint_every=1000")
    started = Started(
        tmp_path, "-m", "trainer.max_steps=5000", "trainer.val_every=2500", "seed=0,1,2", "name=three", *options
    )
    sweep = tmp_path / "outputs/sweeps/three"
    started.wait_until(lambda: all(scalars_of(sweep / f"seed{n}") for n in (0, 1)), "trained two")
    if whole_group:
        os.killpg(started.process.pid, signal.SIGTERM)
    assert (started.process.wait(PATIENCE) if whole_group else started.end(signal.SIGTERM)) == 143, started.output
    assert "Traceback" not in started.output and "jobs done: none; not done: 1, 2, 3" in started.output
    assert [job["status"] for job in read_jobs(sweep)] == ["stopped", "stopped"]
    assert all(state(sweep / f"seed{n}")[-1] % 1000 for n in (0, 1))  # saved where the signal came


@pytest.mark.row(6, 7)
@pytest.mark.long
def test_the_job_whose_worker_was_killed_is_named_and_the_printed_line_continues_it(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    started = Started(tmp_path, "-m", "trainer.max_steps=100", "seed=0,1,2", "name=three", *options)
    job = tmp_path / "outputs/sweeps/three/seed1"
    started.wait_for_file(job / "checkpoints", "last.ckpt")
    os.kill(json.loads((job / "job.json").read_text())["process"], signal.SIGKILL)
    assert started.end() == 1 and "Traceback" not in started.output, started.output
    assert "jobs done: 1, 3; not done: 2\n" in started.output
    assert "TerminatedWorkerError" in (job / "traceback.txt").read_text()
    (line,) = re.findall("the same command continues: (.*)", started.output)
    again = continued(line, tmp_path)
    assert again.returncode == 0, again.stderr
    assert [one["status"] for one in read_jobs(job.parent)] == ["done"] * 3


def scalars_of(run: Path) -> list[tuple[int, float]]:
    return scalars(run, "train/loss") if (run / "metrics.jsonl").is_file() else []
