"""A run is found by each of its names, and an unknown name is answered with the existing ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import MakeRun

from switch_lm.storage.checkpoint import CheckpointError, find_checkpoint
from switch_lm.storage.runs import RunError, find_run


def test_without_a_name_the_run_whose_checkpoint_was_saved_last_is_meant(make_run: MakeRun) -> None:
    make_run("zebra", saved_at=100)
    newest = make_run("grid/0", saved_at=300)
    make_run("ant", saved_at=200)
    make_run("started", saved_at=None)
    assert find_run(None) == newest


def test_the_last_checkpoint_counts_as_well_as_the_best(make_run: MakeRun) -> None:
    longest, _ = make_run("a", saved_at=100), make_run("b", saved_at=200)
    last = longest / "checkpoints" / "last.ckpt"
    last.write_bytes(b"")
    os.utime(last, (300, 300))
    assert find_run(None) == longest


def test_a_run_is_found_by_name_by_path_and_by_the_path_of_its_checkpoint(make_run: MakeRun) -> None:
    run = make_run("mine")
    assert find_run("mine") == find_run("outputs/runs/mine") == find_run("mine/") == run
    assert find_run(str(run.resolve())) == run.resolve()
    assert find_run(str(run / "checkpoints" / "best.ckpt")) == run / "checkpoints" / "best.ckpt"


def test_a_job_of_a_sweep_is_found_as_sweep_slash_job(make_run: MakeRun) -> None:
    job = make_run("grid/3")
    assert find_run("grid/3") == job


def test_a_name_takes_precedence_over_a_folder_of_that_name(make_run: MakeRun) -> None:
    run = make_run("mine")
    Path("mine", "checkpoints").mkdir(parents=True)
    assert find_run("mine") == run


def test_a_mistyped_name_is_answered_with_the_nearest_ones(make_run: MakeRun) -> None:
    make_run("baseline"), make_run("zebra")
    with pytest.raises(RunError, match=r"'basline' is not a run.*did you mean: baseline$"):
        find_run("basline")


def test_a_name_unlike_any_other_is_answered_with_the_existing_ones(make_run: MakeRun) -> None:
    for name in "abcdefg":
        make_run(f"{name}{name}")
    with pytest.raises(RunError, match=r"'12345' is not a run.*there are: gg, ff, ee, dd, cc and 2 more"):
        find_run("12345")


def test_the_name_of_a_sweep_is_answered_with_its_jobs(make_run: MakeRun) -> None:
    make_run("grid/0"), make_run("grid/1")
    for name in ("grid", "outputs/sweeps/grid"):
        with pytest.raises(RunError, match=r"is a sweep; name one of its jobs: grid/0, grid/1"):
            find_run(name)


@pytest.mark.parametrize("name", [None, "mine", "", "."])
def test_where_no_run_is_the_answer_says_how_to_train_one(name: str | None, make_run: MakeRun) -> None:
    with pytest.raises(RunError, match=r"python -m switch_lm\.train"):
        find_run(name)


def test_a_run_without_a_checkpoint_is_found_by_name_and_the_checkpoint_reported_missing(make_run: MakeRun) -> None:
    run = make_run("started", saved_at=None)
    with pytest.raises(CheckpointError, match=r"no checkpoint at outputs/runs/started: .* first validation"):
        find_checkpoint(find_run("started"))
    assert find_run("started") == run
    with pytest.raises(RunError, match="has a checkpoint yet"):
        find_run(None)
