"""How long one variant takes to a loss, as a multiple of the time of another, and what counts as dropped at the end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_runs import DENSE, ONE, config_of, rows, studied, write_run

from switch_lm.pages.numbers import ratios
from switch_lm.reporting.comparisons import compare, dropped_of, study
from switch_lm.reporting.records import Point, find_sources, read_records
from switch_lm.reporting.tables import comparison_table
from switch_lm.reporting.times import lowest_rung, time_ratio
from switch_lm.storage.metrics import MetricsFile


def curve(speed: float, end: float) -> list[Point]:
    """Down from 2.0 by 0.1 a step to the end, a step in `speed` seconds."""
    steps = round((2.0 - end) / 0.1)
    return [Point(step, 2.0 - 0.1 * step, speed * step) for step in range(1, steps)] + [
        Point(steps, end, speed * steps)
    ]


def test_the_rung_is_the_lowest_that_half_of_the_seeds_of_both_reached() -> None:
    ours = {seed: [Point(1, loss, 1.0)] for seed, loss in enumerate([1.51, 1.55, 1.62, 1.7])}
    theirs = {seed: [Point(1, 1.4, 1.0)] for seed in range(4)}
    assert lowest_rung(ours) == 1.55 and lowest_rung(ours, theirs) == 1.55 and lowest_rung(theirs) == 1.4
    assert lowest_rung({0: [Point(1, 1.1500000000000001, 1.0)]}) == 1.15
    assert lowest_rung(ours, {}) is None


def test_times_are_compared_as_ratios_paired_by_seed() -> None:
    ours = {0: curve(2.0, 1.5), 1: curve(4.0, 1.5), 2: curve(16.0, 1.5)}
    theirs = {0: curve(1.0, 1.5), 1: curve(4.0, 1.5), 2: curve(4.0, 1.5)}
    result = time_ratio(ours, theirs)  # twice, once and four times as long
    assert result is not None and (result.loss, result.ours_missed, result.theirs_missed) == (1.5, 0, 0)
    assert math.exp(result.estimate.mean) == pytest.approx(2.0)
    assert result.estimate.half() == pytest.approx(4.302653 * math.log(2) / math.sqrt(3))


def test_a_seed_that_does_not_reach_the_rung_counts_as_the_slowest_and_is_counted() -> None:
    ours = {0: curve(2.0, 1.5), 1: curve(3.0, 1.5), 2: curve(1.0, 1.7), 3: curve(9.0, 1.7)}
    theirs = {seed: curve(1.0, 1.5) for seed in range(4)}
    result = time_ratio(ours, theirs)
    assert result is not None and (result.loss, result.ours_missed) == (1.5, 2)
    # Seed 2 stopped after 3 s, but the slowest that reached it took 15 s; seed 3 took 27 s.
    assert math.exp(4 * result.estimate.mean) == pytest.approx(10 / 5 * 15 / 5 * 15 / 5 * 27 / 5)
    assert result.estimate.interval() is None and result.bound == "at least "  # it would have taken longer
    other = time_ratio(theirs, ours)
    assert other is not None and other.bound == "at most " and other.estimate.interval() is None


def test_a_pair_of_seeds_that_both_miss_the_rung_counts_as_equal_and_nothing_is_claimed() -> None:
    ours, theirs = ({0: curve(s, 1.5), 1: curve(s, 1.5), 2: curve(s, 1.7)} for s in (20.0, 1.0))
    result = time_ratio(ours, theirs)
    assert result is not None and (result.ours_missed, result.theirs_missed, result.bound) == (1, 1, None)
    assert math.exp(3 * result.estimate.mean) == pytest.approx(20.0**2)


@pytest.mark.parametrize(
    "theirs", [{}, {1: curve(1.0, 1.5)}, {0: [Point(5, 1.5)]}], ids=["none", "no seed", "no times"]
)
def test_no_seed_in_common_or_unknown_seconds_give_no_ratio(theirs: dict[int | None, list[Point]]) -> None:
    assert time_ratio({0: curve(1.0, 1.5)}, theirs) is None


def test_the_clock_is_compared_apart_from_the_steps(tmp_path: Path) -> None:
    # Straight down by 0.01 a second to the rung of 1.5: after 97, 96 and 95.5 s, and after 100, 99 and 98.5 s.
    result = studied(tmp_path, {"dense": [1.5, 1.49, 1.485], "dropless": [1.47, 1.46, 1.455]})
    (time,) = [row for row in rows(result) if row[2].startswith("time")]
    assert time[:3] == ("Switch, dropless", "dense", "time ratio to 1.5") and time[5] == "resolved"
    assert time[3:5] == ("0.97, 0.97 to 0.97", "0.97 to 0.97")


def test_an_interval_of_a_ratio_that_says_next_to_nothing_is_short() -> None:
    assert ratios((math.log(0.21), math.log(14.64))) == "0.21 to 14.64" and ratios(None) == "-"
    assert ratios((math.log(6e-7), math.log(1.7e6))) == "6e-07 to 2e+06"


def test_seeds_that_miss_the_rung_are_stated_and_nothing_is_left_out(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.7, 1.5], "dropless": [1.4, 1.5, 1.45]})
    (time,) = [row for row in rows(result) if row[2].startswith("time")]
    assert time[2] == "time ratio to 1.5; 1 of 3 of `dense` did not reach it"
    assert time[3:6] == ("at most 0.95", "-", "not resolved")
    both = studied(tmp_path / "b", {"dense": [1.5, 1.7, 1.5], "dropless": [1.5, 1.45, 1.7]})
    (time,) = [row for row in rows(both) if row[2].startswith("time")]
    assert time[3:6] == ("-", "-", "not resolved")
    assert "A seed that did not counts as the slowest: the ratio is a bound" in comparison_table(compare(both)).note


def test_the_threshold_is_the_lowest_rung_of_the_control_and_another_or_as_asked(tmp_path: Path) -> None:
    controlled = studied(
        tmp_path / "a", {"dense": [1.501, 1.513], "dropless": [1.7, 1.61], "one": [1.9, 1.9]}
    ).threshold
    assert controlled is not None and controlled.loss == 1.65 and "of `dense` and of another" in controlled.origin
    alone = studied(tmp_path / "b", {"one": [1.2, 1.401]}).threshold
    assert alone is not None and alone.loss == 1.2
    asked = studied(tmp_path / "c", {"one": [1.2]}, threshold=1.234).threshold
    assert asked is not None and (asked.loss, asked.origin) == (1.234, "as asked for")


def test_dropped_at_the_end_is_the_mean_over_the_last_fifth_of_the_planned_steps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "one", config_of(**ONE), dropped=0.9, dropped_whole_run=None)
    old = write_run(tmp_path / "runs" / "old", config_of(1, **ONE), dropped=0.9, dropped_whole_run=None)
    file = MetricsFile(folder, first_step=1000)
    for step, (first, second) in {70: (0.9, 0.9), 80: (0.9, 0.9), 90: (0.1, 0.3), 100: (0.0, 0.2)}.items():
        file.write({"moe/layer_00/dropped_share": first, "moe/layer_02/dropped_share": second}, step)
    file.close()
    write_run(tmp_path / "dense", config_of(**DENSE))
    new, older = (study(read_records(find_sources([path]))) for path in (folder, old))
    assert new.variants[0].mean("dropped_tail") == pytest.approx(0.15)  # steps 90 and 100 of 100, two layers
    tail = dropped_of(new.variants[0])
    assert tail is not None and tail.mean == pytest.approx(0.15)
    assert older.variants[0].mean("dropped_tail") is None and dropped_of(older.variants[0]) is None
    assert compare(new) == []
