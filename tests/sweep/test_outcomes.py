"""What a sweep records and prints of jobs that were killed, interrupted or lost, with another function for training."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from switch_lm import train as command
from switch_lm.config.paths import interpreter
from switch_lm.reporting.records import find_sources, read_records
from switch_lm.storage import locks
from switch_lm.storage.locks import Lock
from switch_lm.storage.run_folder import Stopped
from switch_lm.sweep.jobs import fail, read_jobs
from switch_lm.sweep.launchers import Launches, _Complete
from switch_lm.sweep.table import print_left, print_row

RESULT = {"val_loss": 1.0, "tokens_per_second": 1.0}
PLAN = {"varied": ["seed"], "jobs": [{"seed": n} for n in range(3)], "num_jobs": 3, "side_by_side": 1, "start": "now"}
Start = Callable[..., object]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Runs `train -m seed=0,1 name=two` in this process, with its function for training, and returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.0)

    def run(train: Callable[..., dict[str, Any]], *overrides: str) -> object:
        monkeypatch.setattr(command, "train", train)
        monkeypatch.setattr(sys, "argv", ["train", "-m", "seed=0,1", "name=two", *overrides])
        try:
            command.main()
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def done(*_: Any, folder: Path, **__: Any) -> dict[str, Any]:
    (folder / "result.json").write_text(json.dumps(RESULT))
    return RESULT


def job(number: int, **facts: Any) -> dict[str, Any]:
    return {"job": number, "overrides": {"seed": number}, "start": "now", **facts}


def test_a_job_killed_between_its_result_and_its_record_is_done(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(done) == 0
    record = tmp_path / "outputs/sweeps/two/seed1/job.json"
    stored = json.loads(record.read_text())
    assert stored.pop("seconds") >= 0
    record.write_text(json.dumps(stored | {"status": "running"}))
    capsys.readouterr()
    assert start(done) == 0
    assert [one["status"] for one in read_jobs(record.parents[1])] == ["done", "done"]
    assert capsys.readouterr().out.count("  before  ") == 2


def interrupted(*_: Any, **__: Any) -> dict[str, Any]:
    raise KeyboardInterrupt


def stopped(*_: Any, **__: Any) -> dict[str, Any]:
    raise Stopped("stopped by a signal", run="two", code=143)


@pytest.mark.parametrize(("train", "code"), [(interrupted, 130), (stopped, 143)])
def test_a_sweep_that_was_stopped_unlocks_its_folder(
    train: Callable[..., dict[str, Any]], code: int, start: Start
) -> None:
    assert start(train) == code
    assert start(done) == 0


def test_a_sweep_that_is_refused_unlocks_its_folder(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "outputs/sweeps/two/sweep.json"
    plan.parent.mkdir(parents=True)
    for _ in range(2):
        plan.write_text("{")
        assert start(done) == 2
        assert f"{plan.relative_to(tmp_path)} is damaged" in capsys.readouterr().err
    plan.unlink()
    assert start(done) == 0


def test_the_time_of_a_lost_worker_is_unknown_and_not_averaged_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(tmp_path, PLAN, job(0), RuntimeError("lost"))
    (lost,) = read_jobs(tmp_path)
    assert "FAILED: RuntimeError: lost" in capsys.readouterr().out
    assert lost["status"] == "failed" and "seconds" not in lost
    second = job(1, status="done", seconds=10.0)
    print_row(PLAN, second, RESULT, [lost, second], skipped=False)
    assert capsys.readouterr().out.endswith(" 10 s\n")  # one more job, as long as the one that is known
    print_row(PLAN, job(1, status="done"), RESULT, [lost, job(1, status="done")], skipped=True)
    assert capsys.readouterr().out.endswith(" -\n")


def test_a_clusters_job_that_has_not_ended_has_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its launcher says that it is complete; its record does not."""

    class Cluster:
        def launch(self, overrides: list[list[str]], _: int) -> list[JobReturn]:
            for number in range(len(overrides)):
                folder = tmp_path / f"seed{number}"
                folder.mkdir()
                status = ["done", "running"][number]
                (folder / "job.json").write_text(json.dumps(job(number, status=status)))
                (folder / "result.json").write_text(json.dumps(RESULT))
            return [JobReturn(status=JobStatus.COMPLETED) for _ in overrides]

    Cluster.__module__ = "hydra_plugins.submitit"
    (tmp_path / "sweep.json").write_text(json.dumps(PLAN))
    _Complete(Cluster(), tmp_path, Launches()).launch([["seed=0"], ["seed=1"]], 0)  # type: ignore[arg-type]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1/3"]


def test_equal_values_are_run_once_and_reported(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(done, "seed=0,0,range(0,2)", "model.capacity_factor=1,1.0,null,none") == 0
    output = capsys.readouterr().out
    assert output.startswith("Sweep of 4 jobs: seed 0, 1 x model.capacity_factor 1, null\n")
    assert "seed: 0, 0, 0 are equal: run once\n" in output
    assert "model.capacity_factor: 1, 1.0 are equal: run once\n" in output
    jobs = [{"seed": seed, "model.capacity_factor": factor} for seed in (0, 1) for factor in (1, None)]
    assert [one["overrides"] for one in read_jobs(tmp_path / "outputs/sweeps/two")] == jobs


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (["model.d_model=64,63", "model.num_experts=0,1"], ["model.num_experts=0: must", "model.num_heads=4: must"]),
        (["seed=range(0,2000)", "model.num_experts=8,0"], ["model.num_experts=0: must"]),
        (["model=switch,dense", "alpha=0,-1"], ["alpha=-1.0: must lie"]),
        (["router=topk,switch", "router.top_k=2"], ["router.top_k=2: router=switch sends"]),
        (["data.path=text.txt,nowhere.txt"], ["data.path=nowhere.txt: No such file"]),
        (["init_from=nobody"], ["init_from=nobody: 'nobody' is not a run under outputs"]),
    ],
)
def test_every_value_is_checked_before_the_first_job(
    overrides: list[str], wrong: list[str], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a text\n")
    assert start(done, *overrides) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(begin) for line, begin in zip(lines[-len(wrong) :], wrong, strict=True)), lines
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("outputs", ["O'Brien ${x},a=b\\\\", "'~/sw'"])
def test_a_sweep_runs_in_a_folder_of_any_name(
    outputs: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert start(done, f"outputs={outputs}") == 0
    folder = tmp_path / outputs.strip("'").replace("~/", "") if "~" in outputs else tmp_path / outputs
    assert len(read_jobs(folder / "sweeps/two")) == 2


def test_equal_jobs_of_a_search_are_launched_once(tmp_path: Path) -> None:
    """Side by side they would lock each other out."""
    launched: list[list[str]] = []

    def launch(overrides: list[list[str]], _: int) -> list[JobReturn]:
        launched.extend(overrides)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in overrides]

    (tmp_path / "sweep.json").write_text(json.dumps(PLAN))
    side: Any = SimpleNamespace(launch=launch)
    returned = _Complete(side, tmp_path, Launches()).launch([["seed=0"], ["seed=1"], ["seed=0"]], 0)
    assert launched == [["seed=0"], ["seed=1"]] and len(returned) == 3


def test_a_sweep_whose_disk_fails_ends_with_one_line_that_names_the_file(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fills_the_disk(*_: Any, **__: Any) -> dict[str, Any]:
        monkeypatch.setattr("os.fsync", lambda _: Path("/dev/full").write_text("x"))
        return {}

    assert start(fills_the_disk) == 1
    line = "outputs/sweeps/two/seed0/traceback.txt could not be written: No space left on device; make room"
    assert capsys.readouterr().err == f"{line}\n"


def test_a_job_is_running_only_while_it_or_its_sweep_has_a_process(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job(0, status="running")))
    for held in (folder, tmp_path):
        with Lock(held, "for this test"):
            assert [one["status"] for one in read_jobs(tmp_path)] == ["running"]
    assert [one["status"] for one in read_jobs(tmp_path)] == ["killed"]
    (record,) = read_records(find_sources([folder]))
    assert record.status == "unfinished" and record.reason.endswith("; it was killed, or the machine went down")


def test_what_is_left_of_a_sweep_is_one_line_that_a_shell_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCH_LM_PLUGINS", "ranked")
    words = ["-m", "switch_lm.train", "model.capacity_factor=1,2", "name=a b " + "long" * 50, "-m"]
    print_left(PLAN | {"command": shlex.join(["python", *words])}, [job(0, status="done")])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "jobs done: 1; not done: 2, 3"
    line = shlex.split(second.removeprefix("the same command continues: "))
    assert line == ["SWITCH_LM_PLUGINS=ranked", interpreter(), *words]
