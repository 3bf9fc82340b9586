"""Jobs in processes of their own, and those that a search chooses: each as if alone, and failures listed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from compare import same
from sweep_runs import block, rows, run, weights

from switch_lm.config.limits import num_cores
from switch_lm.sweep.jobs import read_jobs

JOBLIB = ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
SUBMITIT = ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"])
BASIC: tuple[str, list[str]] = ("", [])
# Each is run at the start of every Python process, and harms the job of seed 1 or every worker.
IN_JOB = """
from switch_lm.storage import choice
of_job = choice.of_job
def crash(folder, config):
    if config.seed == 1:
        {}
    return of_job(folder, config)
choice.of_job = crash
"""
UNPICKLABLE = IN_JOB.format("class Local(Exception): ...\n        raise Local('no way', lambda: 0)")
KILLED = IN_JOB.format("import os; os._exit(9)")
NOT_IMPORTED = """
import sys
if "switch_lm.train" not in sys.orig_argv:
    sys.modules["switch_lm.sweep"] = None
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "harm", "reason", "failed"),
    [
        pytest.param(BASIC, UNPICKLABLE, "Local: ('no way'", [1], id="basic, an unexpected error"),
        pytest.param(JOBLIB, UNPICKLABLE, "Local: ('no way'", [1], id="joblib, an error that cannot be pickled"),
        pytest.param(JOBLIB, KILLED, "TerminatedWorkerError: ", [1], id="joblib, a killed worker"),
        pytest.param(JOBLIB, NOT_IMPORTED, "ModuleNotFoundError: ", [0, 1, 2], id="joblib, a worker without the code"),
        pytest.param(SUBMITIT, KILLED, "UncompletedJobError: ", [1], id="submitit, a killed worker"),
        pytest.param(SUBMITIT, NOT_IMPORTED, "ModuleNotFoundError: ", [0, 1, 2], id="submitit, no code"),
    ],
)
def test_a_crash_in_a_worker_is_a_row_with_its_reason_and_the_other_jobs_are_kept(
    launcher: tuple[str, list[str]], harm: str, reason: str, failed: list[int], tmp_path: Path
) -> None:
    plugin, options = launcher
    if plugin:
        pytest.importorskip(f"hydra_plugins.{plugin}")
    (tmp_path / "sitecustomize.py").write_text(harm)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(tmp_path, "-m", "seed=0,1,2", "name=crash", *options, env=os.environ | {"PYTHONPATH": paths})
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "configuration" not in done.stderr and "Traceback" not in done.stderr, output
    sweep = tmp_path / "outputs" / "sweeps" / "crash"
    records = read_jobs(sweep)
    assert [record["job"] for record in records if record["status"] == "failed"] == failed, output
    assert [record["job"] for record in records if record["status"] == "done"] == sorted({0, 1, 2} - {*failed}), output
    assert len(rows(done)) == 3, output
    for job in failed:
        (row,) = (row for row in rows(done) if row.split()[0] == f"{job + 1}/3")
        assert f"FAILED: {reason}" in row
        assert "Traceback" in (sweep / f"seed={job}" / "traceback.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "options"), [JOBLIB, SUBMITIT])
def test_jobs_in_processes_of_their_own_give_what_they_give_alone(
    plugin: str, options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    threads = 1 if "cpus" in options[1] else max(1, num_cores() // 2)
    for seed in (0, 1):
        block(tmp_path / f"outputs/sweeps/apart/seed={seed},capacity_factor=2.0")
    done = run(tmp_path, "-m", "seed=0,1", "model.capacity_factor=1.0,2.0", "name=apart", *options)
    records = read_jobs(tmp_path / "outputs" / "sweeps" / "apart")
    assert [record["status"] for record in records] == ["done", "failed"] * 2, done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr
    alone = run(tmp_path, "seed=1", "model.capacity_factor=1.0", "name=alone", f"trainer.threads={threads}")
    assert alone.returncode == 0, alone.stderr
    job = tmp_path / "outputs" / "sweeps" / "apart" / "seed=1,capacity_factor=1.0"
    assert json.loads((job / "hardware.json").read_text())["threads"] == threads
    assert same(weights(job), weights(tmp_path / "outputs" / "runs" / "alone"))


@pytest.mark.slow
def test_a_search_goes_on_after_a_job_that_failed_and_tells_how_many_are_left(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = run(
        tmp_path,
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.sampler.seed=0",
        "optim=adamw",
        "optim.lr=choice(0.001,1e37)",
        "alpha=interval(0.0,0.5)",
        "name=search",
    )
    records = read_jobs(tmp_path / "outputs" / "sweeps" / "search")
    assert len(records) == 6, done.stdout + done.stderr
    assert {record["status"] for record in records} == {"done", "failed"}
    assert all(0 <= record["overrides"]["alpha"] <= 0.5 for record in records)
    assert done.stdout.startswith("Sweep of 6 jobs:") and rows(done)[-1].split()[0] == "6/6"
