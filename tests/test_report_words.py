"""What a report says: who wins or loses, when it is resolved, and what it must not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_runs import DENSE, DROPLESS, ONE, write_sweep

from switch_lm.report.comparisons import Comparisons, compare
from switch_lm.report.records import read_records
from switch_lm.report.sources import find_sources
from switch_lm.report.study import Study, study
from switch_lm.report.words import lead, words

MODELS: dict[str, dict[str, Any]] = {
    "dense": DENSE, "wide": DENSE | {"d_ff": 4096}, "one": ONE, "1.25": {}, "2.0": {"capacity_factor": 2.0},
    "dropless": DROPLESS, "top2": {"top_k": 2, "capacity_factor": 2.5}, "random": DROPLESS | {"random_drop_rate": 0.07},
}  # fmt: skip
Losses = Mapping[str, Sequence[float]]


def studied(folder: Path, losses: Losses, threshold: float | None = None, **changes: Any) -> Study:
    sweep = write_sweep(folder / "sweep", {name: MODELS[name] for name in losses}, losses, **changes)
    return study(read_records(find_sources([sweep])), threshold=threshold)


def said(folder: Path, losses: Losses, **changes: Any) -> tuple[str, str]:
    """The lead, and all words as lines."""
    found = studied(folder, losses, **changes)
    compared = compare(found)
    return lead(found, compared), "\n".join(words(found, compared))


def line(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found


def test_switch_wins_where_it_is_lower_and_the_interval_excludes_0(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.50, 1.61, 1.70], "dropless": [1.47, 1.58, 1.67]})
    told = "lower by 0.0300 nats (95 % interval 0.0300 to 0.0300, 3 seeds): resolved. Switch wins per step."
    assert told in line(text, "Per step: `Switch, dropless` against `dense` of equal computation")
    assert told in top
    assert "loses" not in text


def test_an_interval_is_told_with_its_ends(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"dense": [1.5, 1.5, 1.5], "dropless": [1.48, 1.47, 1.46]})
    # 0.03 -+ 4.30265 x 0.01 / sqrt(3)
    assert "lower by 0.0300 nats (95 % interval 0.0052 to 0.0548, 3 seeds): resolved" in line(text, "Per step")


def test_switch_loses_where_it_is_higher(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.50, 1.61], "dropless": [1.52, 1.63]})
    told = "higher by 0.0200 nats (95 % interval 0.0200 to 0.0200, 2 seeds): resolved. Switch loses per step."
    assert told in line(text, "Per step") and told in top
    assert "wins" not in text + top


def test_fewer_than_five_seeds_whose_interval_includes_0_are_not_resolved(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.5, 1.5, 1.5], "dropless": [1.46, 1.47, 1.53]})
    assert "3 seeds): not resolved." in line(text, "Per step")
    assert "wins" not in text + top and "loses" not in text + top


def test_five_seeds_whose_interval_includes_0_show_no_difference(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"dense": [1.5] * 5, "dropless": [1.46, 1.47, 1.53, 1.54, 1.5]})
    assert "5 seeds): no difference shown." in line(text, "Per step")
    assert "wins" not in text


def test_one_seed_is_never_resolved(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.5], "dropless": [1.1]})
    assert "lower by 0.4000 nats (one seed, no interval): not resolved." in line(text, "Per step")
    assert "Each variant has one seed: no difference is resolved." in text
    assert "wins" not in text + top and "intervals were" not in text


def test_a_seed_of_one_arm_alone_is_left_out(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"dense": [1.5, 1.6], "dropless": [1.4, 1.5, 9.0]})
    assert "lower by 0.1000 nats (95 % interval 0.1000 to 0.1000, 2 seeds)" in line(text, "Per step")


def test_without_dense_runs_nothing_is_said_about_dense(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"one": [1.5, 1.6], "dropless": [1.4, 1.5]})
    none = "There is no dense run here: nothing can be said about Switch against dense."
    assert top.startswith(none) and none in text
    assert "wins" not in text + top and "Per step" not in text


@pytest.mark.parametrize(("name", "work"), [("1.25", "14.6 % more"), ("top2", "85.4 % more")])
def test_dense_of_unequal_computation_is_no_match_and_nobody_wins(name: str, work: str, tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.5, 1.6], name: [1.4, 1.5]})
    assert "No dense run here is a control of equal computation" in top
    found = next(line for line in text.splitlines() if "no match of computation" in line)
    assert f"it executes {work} in training" in found and "lower by 0.1000 nats" in found
    assert found.endswith("That says nothing about equal computation.")
    assert "wins" not in text + top


def test_dense_of_equal_parameters_is_called_that(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"wide": [1.5, 1.6], "dropless": [1.52, 1.62]})
    found = line(text, "`Switch, dropless` against `dense, d_ff 4096` of about equal parameters")
    assert "which executes 4.9 times as much in training: loss higher by 0.0200 nats" in found
    assert "loses" not in text


def test_a_capacity_may_win_dropless_and_lose_at_its_own_capacity(tmp_path: Path) -> None:
    top, text = said(tmp_path, {"dense": [1.5, 1.6], "one": [1.48, 1.58]})  # 0.05 more at its capacity
    found = line(text, "Per step")
    assert "Switch wins per step. With its training capacity in validation too: loss higher by 0.0300 nats" in found
    assert found.endswith("Switch loses there.")
    assert "With its training capacity in validation too, Switch loses." in top


def test_what_is_not_equal_at_equal_computation_is_told(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"dense": [1.5], "one": [1.4]})
    assert "(with the router's products it executes 0.4 % more in training; counting the optimizer's" in text


def test_more_than_two_variants_are_counted_in_the_lead(tmp_path: Path) -> None:
    pair = {"dense": [1.5, 1.6], "dropless": [1.4, 1.5], "one": [1.6, 1.7]}
    found = studied(tmp_path, pair)
    compared = compare(found)
    many = Comparisons(controlled=compared.controlled * 2)
    expected = "Of 4 Switch variants with a dense control of equal computation (`dense`): 2 win per step, 2 lose"
    assert lead(found, many).startswith(expected)


def test_the_clock_is_told_apart_from_the_steps(tmp_path: Path) -> None:
    # Straight down by 0.01 a second: 1.51 is 1 second before the end for one and 3 before it for the other.
    _, text = said(tmp_path, {"dense": [1.5, 1.5, 1.5], "dropless": [1.48, 1.48, 1.48]}, threshold=1.51)
    found = line(text, "On the clock: to a loss of 1.51, ")
    assert "`Switch, dropless` takes 97.0 ± 0.0 s; `dense` takes 99.0 ± 0.0 s." in found
    assert "Time to it is shorter by 2.0 s (95 % interval 2.0 to 2.0, 3 seeds): resolved." in found
    assert found.endswith("Switch wins on the clock. All its steps together take 1.00 times as long.")


def test_a_threshold_that_some_seeds_miss_gives_no_comparison_of_times(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"dense": [1.5, 1.7], "dropless": [1.4, 1.5]}, threshold=1.51)
    found = line(text, "On the clock")
    assert "`dense` takes 99.0 s (1 of 2 seeds reach it)" in found
    assert "the times are not compared" in found and "wins on the clock" not in found
    _, never = said(tmp_path / "b", {"dense": [1.5], "dropless": [1.4]}, threshold=1.0)
    assert "`Switch, dropless` does not reach it; `dense` does not reach it." in line(never, "On the clock")


def test_the_threshold_is_what_every_seed_of_the_control_reaches_or_every_run_rounded_up(tmp_path: Path) -> None:
    controlled = studied(tmp_path / "a", {"dense": [1.501, 1.513], "dropless": [1.7, 1.7]}).threshold
    assert controlled is not None and controlled.loss == 1.52 and "dense" in controlled.origin
    exact = studied(tmp_path / "b", {"dense": [1.53], "dropless": [1.4]}).threshold
    assert exact is not None and exact.loss == 1.53
    alone = studied(tmp_path / "c", {"one": [1.2, 1.401], "dropless": [1.3]}).threshold
    assert alone is not None and alone.loss == 1.41 and alone.shown == "1.41"


def test_neighbouring_capacities_are_compared_in_cost_and_loss(tmp_path: Path) -> None:
    _, text = said(tmp_path, {"one": [1.5, 1.6], "2.0": [1.49, 1.59], "dropless": [1.48, 1.58]})
    found = line(text, "From `Switch, factor 1.0` to `Switch, factor 2.0`: ")
    assert "56.4 % more computation in training; loss lower by 0.0100 nats" in found
    assert "; at the training capacity lower by 0.0600 nats" in found
    assert "36.1 % less computation" in line(text, "From `Switch, factor 2.0` to `Switch, dropless`")
    assert line(text, "From `Switch, factor 1.0` to `Switch, dropless`: as much computation")
    assert "There is no run with `random_drop_rate`" in text


def test_a_capacity_is_compared_with_drops_at_random(tmp_path: Path) -> None:
    losses = {"1.25": [1.45, 1.55], "one": [1.6, 1.7], "dropless": [1.5, 1.6], "random": [1.48, 1.58]}
    _, text = said(tmp_path, losses)
    found = line(text, "`Switch, dropless, random drops 0.07` against `Switch, dropless`: loss lower by 0.0200")
    assert found.endswith("Dropping at random lowers the loss here, as a regulariser does.")
    near = line(text, "`Switch, factor 1.25` against `Switch, dropless, random drops 0.07`, the nearest")
    assert "(7.5 %): loss lower by 0.0300" in near and near.endswith("something else than drops at random do.")
    assert "There is no run with" not in text


def test_the_number_of_comparisons_is_told(tmp_path: Path) -> None:
    # Against dense: loss, loss at capacity, seconds; dropless: loss, seconds; the step between them, twice.
    _, text = said(tmp_path, {"dense": [1.5, 1.6], "one": [1.4, 1.5], "dropless": [1.4, 1.5]}, threshold=1.7)
    assert "7 intervals were looked at" in text and "(here 0.3)" in text


def test_runs_on_two_machines_are_not_compared_on_the_clock(tmp_path: Path) -> None:
    found = studied(tmp_path, {"dense": [1.5, 1.5], "dropless": [1.4, 1.4]})
    for run in found.variants[0].runs:
        dict.__setitem__(run.result, "hardware.name", "another machine")  # type: ignore[index]
    text = "\n".join(words(found, compare(found)))
    assert "their seconds are not compared" in text and "wins on the clock" not in text
    assert "The runs were made in 2 ways" in text


def test_a_loss_that_was_not_measured_dropless_is_told(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"a": ONE | {"eval_capacity_factor": 1.2}}, {"a": [1.5]})
    found = study(read_records(find_sources([sweep])))
    assert "validates at factor 1.2: its loss is not a dropless one" in "\n".join(words(found, compare(found)))
