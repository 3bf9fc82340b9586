"""Jobs in processes of their own, and those that a search chooses: each as if alone, and failures listed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import extension_package
import pytest
from compare import same
from copied_process import Done
from sweep_runs import block, rows, run, weights

from switch_lm.config.limits import num_cores
from switch_lm.config.plugins import VARIABLE
from switch_lm.sweep.jobs import read_jobs

JOBLIB = ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
SUBMITIT = ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"])
BASIC: tuple[str, list[str]] = ("", [])
# Each is run at the start of every Python process, and harms jobs, of which one kills a process, or every worker.
IN_JOB = """
import os, sys
from switch_lm.storage import choice
of_job = choice.of_job
def crash(folder, config):
    class Local(Exception): ...
    if config.model.capacity_factor == 2 and config.router.name == "second_best":
        raise Local("no way", lambda: 0)
    if config.model.capacity_factor == 2 and "switch_lm.train" not in sys.orig_argv:
        os._exit(9)
    return of_job(folder, config)
choice.of_job = crash
"""
NOT_IMPORTED = """
import sys
if "switch_lm.train" not in sys.orig_argv:
    sys.modules["switch_lm.sweep"] = None
"""


def harmed(folder: Path, harm: str, *arguments: str) -> Done:
    """A sweep in which `harm` is run first by every process."""
    (folder / "sitecustomize.py").write_text(harm)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths, VARIABLE: extension_package.NAME * ("second_best" in str(arguments))}
    done = run(folder, "-m", *arguments, env=env)
    assert done.returncode == 1 and "configuration" not in done.stderr and "Traceback" not in done.stderr, done
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "options"), [JOBLIB, SUBMITIT])
def test_where_workers_lack_the_code_each_job_is_a_row_with_that_reason(
    plugin: str, options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    done = harmed(tmp_path, NOT_IMPORTED, "seed=0,1", "name=crash", *options)
    sweep = tmp_path / "outputs" / "sweeps" / "crash"
    assert [job["status"] for job in read_jobs(sweep)] == ["failed"] * 2 and len(rows(done)) == 2, done
    for job in (0, 1):
        assert_reported(done, job, 2, "ModuleNotFoundError: ", sweep / f"seed{job}")


def assert_reported(done: Done, job: int, num_jobs: int, reason: str, folder: Path) -> None:
    """A job that crashed has a row with its reason, and a traceback in its folder."""
    (row,) = (row for row in rows(done) if row.split()[0] == f"{job + 1}/{num_jobs}")
    assert f"FAILED: {reason}" in row
    assert "Traceback" in (folder / "traceback.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "options", "reason"),
    [(*BASIC, None), (*JOBLIB, "TerminatedWorkerError: "), (*SUBMITIT, "UncompletedJobError: ")],
)
def test_jobs_wherever_they_run_load_plugins_give_what_they_give_alone_and_outlive_errors_and_a_killed_worker(
    plugin: str, options: list[str], reason: str | None, tmp_path: Path
) -> None:
    if plugin:
        pytest.importorskip(f"hydra_plugins.{plugin}")
    threads = 1 if "cpus" in str(options) else max(1, num_cores() // 2)
    sweep = tmp_path / "outputs" / "sweeps" / "apart"
    if reason is None:
        block(sweep / "switch_cap2.0")
    extension_package.write(tmp_path)
    grid = ["router=switch,second_best", "router.top_k=1", "model.capacity_factor=1.0,2.0", "seed=1", "name=apart"]
    done = harmed(tmp_path, IN_JOB, *grid, *(options or [f"trainer.threads={threads}"]))
    assert [job["overrides"]["router"] for job in read_jobs(sweep)] == ["switch"] * 2 + ["second_best"] * 2
    assert [job["status"] for job in read_jobs(sweep)] == ["done", "failed"] * 2 and len(rows(done)) == 4, done
    if reason is not None:
        assert_reported(done, 1, 4, reason, sweep / "switch_cap2.0")
    assert_reported(done, 3, 4, "Local: ('no way'", sweep / "second_best_cap2.0")
    job = sweep / "second_best_cap1.0"
    assert "\n  rank: 2\n" in (job / "config.yaml").read_text()
    assert json.loads((job / "hardware.json").read_text())["threads"] == threads
    words = ["router=second_best", "model.capacity_factor=1.0", "seed=1", f"trainer.threads={threads}", "name=alone"]
    alone = run(tmp_path, *words, env=os.environ | {VARIABLE: extension_package.NAME})
    assert alone.returncode == 0, alone.stderr
    assert same(weights(job), weights(tmp_path / "outputs" / "runs" / "alone"))


@pytest.mark.slow
def test_a_search_goes_on_after_a_job_that_failed_and_tells_how_many_are_left(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=0"]
    space = ["optim=adamw", "optim.lr=choice(0.001,1e37)", "alpha=interval(0.0,0.5)"]
    done = run(tmp_path, "-m", *sweeper, *space, "name=search")
    records = read_jobs(tmp_path / "outputs" / "sweeps" / "search")
    assert len(records) == 6, done.stdout + done.stderr
    assert {record["status"] for record in records} == {"done", "failed"}
    assert all(0 <= record["overrides"]["alpha"] <= 0.5 for record in records)
    assert done.stdout.startswith("Sweep of 6 jobs:") and rows(done)[-1].split()[0] == "6/6"
