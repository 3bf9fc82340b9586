"""The tables, pictures and the CSV of a report, from runs whose figures are known in closed form."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import DENSE, DROPLESS, ONE, config_of, write_run, write_sweep

from switch_lm.pages.document import Document, Picture, Table
from switch_lm.reporting.comparisons import Study, compare, study
from switch_lm.reporting.records import find_sources, read_records
from switch_lm.reporting.write import FIGURES, build, summary_csv
from switch_lm.storage.metrics import MetricsFile

VARIANTS: dict[str, dict[str, Any]] = {"dense": DENSE, "one": ONE, "dropless": DROPLESS}
LOSSES = {"dense": [1.5, 1.6], "one": [1.45, 1.65], "dropless": [1.4, 1.5]}


def studied(*paths: Path, threshold: float | None = None) -> Study:
    return study(read_records(find_sources(paths)), threshold=threshold)


def small(folder: Path, **keys: Any) -> Study:
    return studied(write_sweep(folder / "sweep", VARIANTS, LOSSES, **keys), threshold=1.61)


def document(study: Study) -> Document:
    return build(study, compare(study), title="t")


def parts(document: Document) -> Iterator[object]:
    for section in document.sections:
        yield from section.parts


def table(document: Document, caption: str) -> list[dict[str, str]]:
    tables = [part for part in parts(document) if isinstance(part, Table)]
    (part,) = [table for table in tables if table.caption.startswith(caption)]
    return [dict(zip(part.headings, (cell.text for cell in row), strict=True)) for row in part.rows]


def pictures(document: Document) -> dict[str, Any]:
    return {picture.name: picture for picture in document.pictures}


def test_table_1_has_the_papers_columns_and_the_spread_over_seeds(tmp_path: Path) -> None:
    rows = table(document(small(tmp_path)), "Model against")
    assert rows[0] == {
        "Model": "dense",
        "Capacity factor": "-",
        "Loss after 100 steps": "1.5500 ± 0.6353",  # 12.7062 x 0.0707 / sqrt(2)
        "Difference from dense": "-",
        "Steps to a loss of 1.61": "94 ± 64",  # 89 and 99: a loss of 0.01 is a step
        "Seconds to a loss of 1.61": "94.0 ± 63.5",
        "Tokens per second": "8,192",
        "Seeds": "2",
    }
    assert [(row["Model"], row["Capacity factor"]) for row in rows[1:]] == [("Switch", "dropless"), ("Switch", "1.0")]
    assert [row["Difference from dense"] for row in rows[1:]] == ["-0.1000, not resolved", "+0.0000, not resolved"]
    assert rows[2]["Steps to a loss of 1.61"] == "1 of 2 did not reach it"


def test_a_threshold_that_nobody_reaches_is_not_reached(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", VARIANTS, LOSSES)
    rows = table(document(studied(sweep, threshold=1.0)), "Model against")
    assert {row["Seconds to a loss of 1"] for row in rows} == {"2 of 2 did not reach it"}


def test_what_an_older_result_does_not_hold_is_a_dash(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old", config_of(), 1.5)
    (folder / "result.json").write_text(json.dumps({"val_loss": 1.5, "steps": 100, "seed": 0, "hardware": None}))
    report = document(studied(folder))
    (row,) = table(report, "Drops and load")
    assert {row[key] for key in row if "ropped" in key or "ntropy" in key} == {"-"}
    assert table(report, "Model against")[0]["Loss after 100 steps"] == "1.5000 (one seed)"
    (work,) = table(report, "Where the computation")
    assert set(work.values()) == {"Switch, factor 1.25", "-"}
    assert sorted(pictures(report)) == ["learning_by_seconds", "learning_by_step", "training_loss"]


def test_the_ledger_is_shown_by_kind(tmp_path: Path) -> None:
    rows = {row["Variant"]: row for row in table(document(small(tmp_path)), "Where the computation")}
    mega = 4 * 4 * 128 * 512 / 1e6
    assert rows["Switch, factor 1.0"]["Useful"] == rows["dense"]["Feed forward"] == f"{mega:.3f}"
    assert rows["dense"]["Router"] == "0.000" and rows["Switch, factor 1.0"]["Router"] == f"{4 * 2 * 128 * 8 / 1e6:.3f}"


def test_the_frontier_marks_who_is_not_dominated_and_shows_every_seed(tmp_path: Path) -> None:
    dense, dropless, one = pictures(document(small(tmp_path)))["frontier_training_computation"].places
    assert [place.group for place in (dense, dropless, one)] == ["dense", "Switch, dropless", "Switch, factor 1.0"]
    assert [place.front for place in (dense, dropless, one)] == [True, True, False]
    assert [place.level for place in (dense, dropless, one)] == [None, math.inf, 1.0]
    assert one.runs == ((one.x, 1.45), (one.x, 1.65)) and math.isclose(one.y, 1.55)
    assert dropless.hover.startswith("Switch, dropless: 1.4500 ± 0.6353 nats at ")  # 12.7062 x 0.05
    rows = {row["Variant"]: row for row in table(document(small(tmp_path / "b")), "What the loss")}
    key = "Training computation (TFLOP)"
    assert [rows[name][key].endswith("*") for name in rows] == [True, True, False]


def test_nothing_is_compared_by_seconds_where_there_are_several_machines(tmp_path: Path) -> None:
    result = small(tmp_path)
    dense, dropless, _ = result.variants
    for run in (*dense.runs, dropless.runs[0]):
        dict.__setitem__(run.result, "hardware.name", "another machine")  # type: ignore[index]
    report = document(result)
    first, second, third = table(report, "Model against")
    keys = ("Seconds to a loss of 1.61", "Tokens per second")
    assert [first[key] for key in keys] == ["94.0", "8,192"]  # two seeds, no interval
    assert [second[key] for key in keys] == ["several machines"] * 2 and "did not reach" in third[keys[0]]
    costs = {row["Variant"]: row for row in table(report, "What the loss")}
    timed = ("Training time (s)", "Inference time (microseconds per token)")
    assert [costs["dense"][key] for key in timed] == ["100.0", "20.00"]
    assert [costs["Switch, dropless"][key] for key in timed] == ["-", "-"]
    assert costs["dense"]["Training computation (TFLOP)"].endswith(" *")
    drawn = pictures(report)
    assert not [name for name in drawn if "seconds" in name or "time" in name] and "frontier_parameters" in drawn


def test_one_seed_has_no_bars(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", VARIANTS, {name: [1.5] for name in VARIANTS})
    drawn = [one for one in pictures(document(studied(sweep))).values() if isinstance(one, Picture)]
    for picture in drawn:
        assert all(series.low is None and series.high is None for series in picture.series)


def test_drops_are_drawn_by_capacity_factor_with_no_limit_at_the_right_end(tmp_path: Path) -> None:
    picture = pictures(document(small(tmp_path)))["dropped_by_capacity_factor"]
    assert picture.x_names == ("1.0", "dropless")
    (series,) = picture.series
    assert (series.label, series.x, series.y) == ("Switch", (0.0, 1.0), (0.1, 0.0))


def test_drops_are_drawn_by_layer_over_time_where_runs_dropped_anything(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write_run(tmp_path / "runs" / f"{seed}", config_of(seed, **ONE), 1.5)
        file = MetricsFile(folder, first_step=1000)
        for step, share in {10: 0.4, 20: 0.2}.items():
            file.write({f"moe/layer_0{n}/dropped_share": share + seed / 10 + n / 100 for n in (0, 2)}, step)
        file.close()
    first, third = pictures(document(studied(tmp_path / "runs")))["dropped_by_layer_0"].series
    assert (first.label, first.x, third.label) == ("layer 00", (10.0, 20.0), "layer 02")
    assert first.y == pytest.approx((0.45, 0.25)) and third.y == pytest.approx((0.47, 0.27))
    write_run(tmp_path / "none", config_of(**DROPLESS), 1.5)
    assert "dropped_by_layer_0" not in pictures(document(studied(tmp_path / "none")))


def test_alpha_and_experts_have_pictures_where_they_vary(tmp_path: Path) -> None:
    for i, alpha in enumerate((0.0, 0.01, 0.1)):
        write_run(tmp_path / "alphas" / f"run{i}", config_of(alpha=alpha), 1.5, load_max_over_mean=3.0 - i)
    drawn = pictures(document(studied(tmp_path / "alphas")))
    assert drawn["load_max_over_mean_by_alpha"].x_names == ("0.0", "0.01", "0.1")
    (series,) = drawn["loss_by_balance"].series
    assert series.x == (3.0, 2.0, 1.0) and series.labels == ("alpha 0.0", "alpha 0.01", "alpha 0.1")
    for experts in (1, 4, 16):
        write_run(tmp_path / "experts" / f"run{experts}", config_of(num_experts=experts), 1.6 - experts / 100)
    drawn = pictures(document(studied(tmp_path / "experts")))
    (series,) = drawn["loss_by_experts"].series
    assert series.x == (1.0, 4.0, 16.0) and [round(y, 9) for y in series.y] == [1.59, 1.56, 1.44]
    assert "loss_by_balance" not in drawn


def test_curves_are_means_over_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", config_of(0), curve=[(25, 2.0, 10.0), (50, 1.8, 20.0), (100, 1.5, 40.0)])
    write_run(tmp_path / "runs" / "b", config_of(1), curve=[(25, 2.2, 20.0), (100, 1.7, 60.0)])
    drawn = pictures(document(studied(tmp_path / "runs")))
    (series,) = drawn["learning_by_seconds"].series
    assert series.x == (15.0, 50.0) and [round(y, 6) for y in series.y] == [2.1, 1.6]
    assert drawn["learning_by_step"].series[0].x == (25.0, 100.0)


def test_the_csv_has_a_row_per_run_and_the_same_columns_always(tmp_path: Path) -> None:
    text = summary_csv(small(tmp_path))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    header = text.splitlines()[0].split(",")
    assert header[: 5 + len(FIGURES)] == ["run", "variant", "status", "reason", "seed", *FIGURES]
    assert len(header) == len(set(header))
    first = next(row for row in rows if row["run"] == "sweep/seed=1,variant=one")
    assert (first["variant"], first["status"], first["seed"]) == ("Switch, factor 1.0", "done", "1")
    assert float(first["val_loss"]) == 1.65 and float(first["val_loss_train_capacity"]) == 1.70
    assert (first["threshold"], first["steps_to_threshold"], first["seconds_to_threshold"]) == ("1.61", "", "")
    assert first["config.model.capacity_factor"] == "1.0"
    dense = next(row for row in rows if row["variant"] == "dense")
    assert dense["dropped"] == "" and math.isclose(float(dense["steps_to_threshold"]), 89.0, rel_tol=1e-6)
    other = summary_csv(studied(write_run(tmp_path / "alone", config_of(), 1.5))).splitlines()[0].split(",")
    assert header[: len(other)] == other  # but for the keys that differ, which come last
