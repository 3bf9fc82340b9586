"""A run in several processes has the numbers of one: losses, gradients, loads and what routers learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parallel_cases import EQUAL, FAULTS, GROUPED, IN_FLOAT32, RESUMED, STEPS, run_all

Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_all(tmp_path_factory.mktemp("parallel"))


def furthest(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of any number, over the largest number of its tensor or curve."""
    assert ours.keys() == theirs.keys()
    differences = []
    for name, value in ours.items():
        a, b = (
            torch.tensor([*x.values()], dtype=torch.float64) if isinstance(x, dict) else x.double()
            for x in (value, theirs[name])
        )
        differences.append(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.numel() else 0.0)
    return max(differences)


def curves(result: dict[str, Any]) -> dict[str, Any]:
    return {tag: by_step for tag, by_step in result["scalars"].items() if "/lr_" not in tag}


def first_step(result: dict[str, Any]) -> dict[str, Any]:
    return {tag: {1: by_step[1]} for tag, by_step in curves(result).items() if 1 in by_step}


CASES = [(name, size) for name in EQUAL for size in (2, 4)] + [(name, 2) for name in GROUPED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), CASES)
def test_several_processes_have_the_numbers_of_one(results: Results, name: str, size: int) -> None:
    one, several = results[1][0][name], results[size][0][name]
    assert furthest(first_step(several), first_step(one)) < 1e-10
    assert furthest(several["grads"], one["grads"]) < 1e-10
    assert len(one["scalars"]["train/loss"]) == STEPS
    assert furthest(curves(several), curves(one)) < 1e-8
    assert furthest(several["weights"], one["weights"]) < 1e-8
    assert several["drops"] == one["drops"]
    assert several["validation"]["load_LE"] == one["validation"]["load_LE"]
    assert several["validation"]["count"] == one["validation"]["count"]
    assert several["validation"]["num_batches"] == one["validation"]["num_batches"]


@pytest.mark.slow
def test_in_float32_a_step_is_that_of_one_process_up_to_rounding(results: Results) -> None:
    one, several = results[1][0][IN_FLOAT32], results[2][0][IN_FLOAT32]
    assert furthest(first_step(several), first_step(one)) < 1e-5
    assert furthest(several["grads"], one["grads"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_all_processes_end_with_the_same_bits(results: Results, size: int) -> None:
    for name in EQUAL:
        first, *others = (of_rank[name] for of_rank in results[size])
        for other in others:
            assert all(torch.equal(first["weights"][key], other["weights"][key]) for key in first["weights"])
            assert {key: other[key] for key in ("validation", "drops")} == {
                key: first[key] for key in ("validation", "drops")
            }


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_run_that_is_resumed_in_as_many_processes_has_the_same_bits(results: Results, size: int) -> None:
    for of_rank in results[size]:
        whole, resumed = of_rank[RESUMED]["weights"], of_rank["resumed"]["weights"]
        assert of_rank["resumed"]["scalars"].get("train/loss", {}).keys().isdisjoint(range(STEPS // 2))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_with_a_fault_the_numbers_differ(results: Results, name: str) -> None:
    """Loads of each process's own in the balance loss, or the rows of the first process in all."""
    assert furthest(results[2][0][name]["grads"], results[1][0][name]["grads"]) > 1e-6
