"""What a report states: who wins or loses, when it is resolved, and what it must not state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_runs import DENSE, DROPLESS, ONE, config_of, write_run, write_sweep

from switch_lm.reporting.comparisons import Study, compare, study
from switch_lm.reporting.records import find_sources, read_records
from switch_lm.reporting.tables import comparison_table
from switch_lm.reporting.words import bullets, lead

MODELS: dict[str, dict[str, Any]] = {
    "dense": DENSE, "wide": DENSE | {"d_ff": 4096}, "one": ONE, "1.25": {}, "2.0": {"capacity_factor": 2.0},
    "dropless": DROPLESS, "top2": {"top_k": 2, "capacity_factor": 2.5}, "random": DROPLESS | {"random_drop_rate": 0.07},
    "half": DROPLESS | {"switch_every": 2},
}  # fmt: skip
Losses = Mapping[str, Sequence[float]]


def studied(folder: Path, losses: Losses, threshold: float | None = None, **changes: Any) -> Study:
    sweep = write_sweep(folder / "sweep", {name: MODELS[name] for name in losses}, losses, **changes)
    return study(read_records(find_sources([sweep])), threshold=threshold)


def words(study: Study) -> tuple[str, str]:
    """The lead, and the bullets as lines."""
    differences = compare(study)
    return lead(study, differences), "\n".join(bullets(study, differences))


def rows(study: Study) -> list[tuple[str, ...]]:
    """The table of all comparisons: first, second, what, difference, interval, seeds, verdict, kind (computation)."""
    return [tuple(cell.text for cell in row) for row in comparison_table(compare(study)).rows]


VERDICTS = [  # dense, dropless, and what follows
    ([1.50, 1.61, 1.70], [1.47, 1.58, 1.67], "lower by 0.0300 nats", "-0.0300 to -0.0300, 3 seeds): resolved"),
    # 0.03 -+ 4.30265 x 0.01 / sqrt(3)
    ([1.5, 1.5, 1.5], [1.48, 1.47, 1.46], "lower by 0.0300 nats", "-0.0548 to -0.0052, 3 seeds): resolved"),
    ([1.50, 1.61], [1.52, 1.63], "higher by 0.0200 nats", "0.0200 to 0.0200, 2 seeds): resolved"),
    ([1.5, 1.5, 1.5], [1.46, 1.47, 1.53], "lower by 0.0133 nats", "3 seeds): not resolved"),
    ([1.5] * 5, [1.46, 1.47, 1.53, 1.54, 1.49], "lower by 0.0020 nats", "5 seeds): no difference shown"),
    ([1.5, 1.5], [1.5, 1.5], "equal", "0.0000 to 0.0000, 2 seeds): not resolved"),
    ([1.5], [1.1], "lower by 0.4000 nats", "(one seed, no interval): not resolved"),
    ([1.5, 1.6], [1.4, 1.5, 9.0], "lower by 0.1000 nats", "-0.1000 to -0.1000, 2 seeds): resolved"),  # seed 2 is alone
]


@pytest.mark.parametrize(("dense", "dropless", "size", "verdict"), VERDICTS, ids=lambda value: str(value)[:40])
def test_switch_wins_or_loses_where_the_interval_excludes_0_and_nowhere_else(
    dense: list[float], dropless: list[float], size: str, verdict: str, tmp_path: Path
) -> None:
    top, text = words(studied(tmp_path, {"dense": dense, "dropless": dropless}, threshold=1.0))
    assert top.startswith(f"`Switch, dropless` against `dense` of equal computation: loss at the last step {size} (")
    resolved = verdict.endswith(": resolved")
    outcome = f", Switch {'wins' if size.startswith('lower') else 'loses'} per step." if resolved else "."
    assert top.endswith(verdict + outcome)
    assert ("wins" in top + text or "loses" in top + text) is resolved
    assert ("Each variant has one seed: no difference is resolved." in text) is (len(dense) == 1)


def test_without_dense_runs_nothing_is_said_about_dense(tmp_path: Path) -> None:
    top, text = words(studied(tmp_path, {"one": [1.5, 1.6], "dropless": [1.4, 1.5]}))
    assert top == (
        "There is no dense run here: nothing can be said about Switch against dense. The lowest mean loss at the last "
        "step is that of `dropless` with 1.4500 ± 0.0707 (2 seeds)."
    ).replace("`dropless`", "`Switch, dropless`")
    assert "wins" not in text + top and "dense" not in text


def test_variants_that_share_no_seed_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "dense", config_of(0, **DENSE), 1.5)
    write_run(tmp_path / "runs" / "dropless", config_of(1, **DROPLESS), 1.4)
    top, text = words(study(read_records(find_sources([tmp_path / "runs"]))))
    assert top.endswith("loss at the last step not compared, they have no seed in common.") and "against" not in text


UNEQUAL = [
    ("dense", "1.25", "unequal computation", "+14.6 %", "-0.1000"),
    ("dense", "top2", "unequal computation", "+85.4 %", "-0.1000"),
    ("wide", "dropless", "equal parameters", "-79.8 %", "-0.1000"),
]


@pytest.mark.parametrize(("control", "name", "kind", "work", "loss"), UNEQUAL)
def test_a_dense_run_of_unequal_computation_is_compared_and_nobody_wins(
    control: str, name: str, kind: str, work: str, loss: str, tmp_path: Path
) -> None:
    result = studied(tmp_path, {control: [1.5, 1.6], name: [1.4, 1.5]})
    top, text = words(result)
    assert "No dense run here is a control of equal computation" in top
    assert "wins" not in text + top
    assert [(*row[2:4], row[-1]) for row in rows(result)] == [("loss", loss, f"{kind} ({work})")]


def test_a_capacity_may_win_dropless_and_lose_at_its_own_capacity(tmp_path: Path) -> None:
    top, text = words(studied(tmp_path, {"dense": [1.5, 1.6], "one": [1.48, 1.58]}))  # 0.05 more at its capacity
    assert top.endswith("Switch wins per step.")
    assert "loss at the training capacity higher by 0.0300 nats" in text
    assert "resolved, Switch loses at its training capacity." in text


def test_more_than_two_controlled_variants_are_counted_in_the_lead(tmp_path: Path) -> None:
    losses = {"dense": [1.5, 1.6], "dropless": [1.4, 1.5], "one": [1.6, 1.7], "half": [1.3, 1.8]}
    top, text = words(studied(tmp_path, losses))
    assert top == (
        "3 comparisons of Switch with a dense control of equal computation, by the loss at the last step: "
        "1 won, 1 lost, 1 not resolved."
    )
    assert text.count("against `dense` of equal computation: loss at the last step") == 3


def test_the_clock_is_compared_apart_from_the_steps(tmp_path: Path) -> None:
    # Straight down by 0.01 a second: 1.51 is 1 second before the end for one and 3 before it for the other.
    _, text = words(studied(tmp_path, {"dense": [1.5] * 3, "dropless": [1.48] * 3}, threshold=1.51))
    assert (
        "seconds to the threshold lower by 2.0 s (95 % interval of the difference -2.0 to -2.0, 3 seeds): resolved, "
        "Switch wins on the clock." in text
    )


@pytest.mark.parametrize("threshold", [1.51, 1.0], ids=["one seed of `dense` misses it", "no seed reaches it"])
def test_a_threshold_that_some_seeds_miss_gives_no_comparison_of_times(threshold: float, tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.7], "dropless": [1.4, 1.5]}, threshold=threshold)
    assert "seconds" not in words(result)[1]
    (seconds,) = [row for row in rows(result) if row[2] == "seconds"]
    assert seconds[3:7] == ("-", "-", "0", "not compared")


def test_runs_on_two_machines_are_not_compared_on_the_clock(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.5], "dropless": [1.4, 1.4]})
    assert "on the clock" in words(result)[1]
    for run in result.variants[0].runs:
        dict.__setitem__(run.result, "hardware.name", "another machine")  # type: ignore[index]
    _, text = words(result)
    assert "on the clock" not in text and "in 2 ways: compare no seconds." in text


def test_losses_of_two_texts_are_not_compared(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.5], "dropless": [1.4, 1.4]})
    assert "texts" not in words(result)[1]
    other = studied(tmp_path / "other", {"dense": [1.5, 1.5]}, corpus_sha256="f" * 64)
    both = study([*result.records, *other.records])
    assert "trained on different texts: their losses cannot be compared" in words(both)[1]
    assert {row[:2] for row in rows(both)} == {("Switch, text 012345", "dense, text 012345")}


def test_the_threshold_is_what_every_seed_of_the_control_reaches_or_every_run_rounded_up(tmp_path: Path) -> None:
    controlled = studied(tmp_path / "a", {"dense": [1.501, 1.513], "dropless": [1.7, 1.7]}).threshold
    assert controlled is not None and controlled.loss == 1.52 and "dense" in controlled.origin
    exact = studied(tmp_path / "b", {"dense": [1.53], "dropless": [1.4]}).threshold
    assert exact is not None and exact.loss == 1.53
    alone = studied(tmp_path / "c", {"one": [1.2, 1.401], "dropless": [1.3]}).threshold
    assert alone is not None and alone.loss == 1.41


def test_neighbouring_capacities_are_compared_in_cost_and_loss(tmp_path: Path) -> None:
    result = studied(tmp_path, {"one": [1.5, 1.6], "2.0": [1.49, 1.59], "dropless": [1.48, 1.58]})
    label = "Switch, factor "
    assert [(row[0].removeprefix(label), row[1].removeprefix(label), *row[2:4], row[-1]) for row in rows(result)] == [
        ("2.0", "1.0", "loss", "-0.0100", "capacity factor (+56.4 %)"),
        ("2.0", "1.0", "loss at capacity", "-0.0600", "capacity factor (+56.4 %)"),
        ("Switch, dropless", "2.0", "loss", "-0.0100", "capacity factor (-36.1 %)"),
        ("Switch, dropless", "1.0", "loss", "-0.0200", "capacity factor (+0.0 %)"),
        ("Switch, dropless", "1.0", "loss at capacity", "-0.0700", "capacity factor (+0.0 %)"),
    ]
    assert "No run has `router.random_drop_rate`" in words(result)[1]


def test_a_capacity_is_compared_with_drops_at_random(tmp_path: Path) -> None:
    losses = {"1.25": [1.45, 1.55], "one": [1.6, 1.7], "dropless": [1.5, 1.6], "random": [1.48, 1.58]}
    _, text = words(studied(tmp_path, losses))
    random = "`Switch, dropless, random drops 0.07`"
    assert f"{random} against `Switch, dropless`: loss at the last step lower by 0.0200 nats" in text
    assert f"`Switch, factor 1.25` against {random}: loss at the last step lower by 0.0300 nats" in text  # drops 7.5 %
    assert "random_drop_rate" not in text and "wins" not in text


def test_the_number_of_comparisons_is_stated(tmp_path: Path) -> None:
    # Against dense: loss, loss at capacity, seconds; dropless: loss, seconds; the step between them, twice.
    losses = {"dense": [1.5, 1.6], "one": [1.4, 1.5], "dropless": [1.4, 1.5]}
    _, text = words(studied(tmp_path, losses, threshold=1.7))
    assert "7 intervals at 95 %" in text and "here 0.3." in text


def test_a_loss_that_was_not_measured_dropless_is_stated(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"a": ONE | {"eval_capacity_factor": 1.2}}, {"a": [1.5]})
    result = study(read_records(find_sources([sweep])))
    assert "validates at factor 1.2: its loss is not a dropless one" in words(result)[1]
