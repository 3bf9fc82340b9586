"""Which runs share a deviation, and what holds of a whole family of comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    DENSE,
    DROPLESS,
    ONE,
    config_of,
    record,
    rows,
    studied,
    words,
    write_plan,
    write_run,
    write_sweep,
)

from switch_lm.pages.markdown import to_markdown
from switch_lm.reporting.comparisons import Difference, compare, study
from switch_lm.reporting.records import Record, find_sources, read_records
from switch_lm.reporting.tables import comparison_table, table_1
from switch_lm.reporting.write import build
from switch_lm.stats.contrasts import LEFT_OUT
from switch_lm.stats.intervals import t_quantile

LOSSES = {"dense": [1.5, 1.61, 1.72], "one": [1.49, 1.6, 1.7], "1.25": [1.48, 1.58, 1.69], "dropless": [1.4, 1.5, 1.62]}


def of(differences: list[Difference], ours: str, theirs: str, figure: str = "val_loss") -> Difference:
    (one,) = [d for d in differences if (d.ours.label, d.theirs.label, d.figure) == (ours, theirs, figure)]
    return one


def half(difference: Difference) -> float:
    assert difference.compared is not None and difference.compared.interval is not None
    low, high = difference.compared.interval
    return (high - low) / 2


def test_every_comparison_is_in_one_family_and_each_family_is_corrected_for_its_own(tmp_path: Path) -> None:
    differences = compare(studied(tmp_path, LOSSES))
    by_family = {f: [d for d in differences if d.family == f] for f in ("control", "ladder", "rest")}
    names = {f: [(d.ours.label, d.theirs.label, d.figure) for d in own] for f, own in by_family.items()}
    one, wider, free = "Switch, factor 1.0", "Switch, factor 1.25", "Switch, dropless"
    assert names["control"] == [(v, "dense", "val_loss") for v in (free, one, wider)]
    assert names["ladder"] == [(wider, one, "val_loss"), (free, wider, "val_loss")]
    at_capacity, time = "val_loss_train_capacity", "time to a loss"
    assert names["rest"] == [
        (free, "dense", time), (one, "dense", at_capacity), (one, "dense", time), (free, one, "val_loss"),
        (wider, one, at_capacity), (free, wider, at_capacity), (free, one, at_capacity),
    ]  # fmt: skip
    estimates = [d.estimate for d in by_family["control"]]
    assert {e.freedom for e in estimates if e} == {6}  # 12 runs less 4 variants, 3 seeds and more 1
    # Wider than one interval alone, and narrower than Bonferroni's for three.
    error, width = estimates[0].error, half(by_family["control"][0])  # type: ignore[union-attr]
    assert error is not None and t_quantile(6) < width / error < t_quantile(6, 1 - 0.05 / 3)
    # Holm: of two resolved ones, that with the smaller p is decided at 1 - 0.05 / 2, the other at 0.95.
    assert sorted(half(d) for d in by_family["ladder"]) == pytest.approx(
        [t_quantile(6) * error, t_quantile(6, 1 - 0.05 / 2) * error]
    )


def test_a_failed_seed_leaves_no_variant_out_and_its_own_effect_does_not_count(tmp_path: Path) -> None:
    losses: dict[str, list[float | None]] = {
        "dense": [1.5, 1.61, 1.7],
        "one": [1.49, 1.6, 1.7],
        "dropless": [1.4, 1.51, None],
    }
    estimate = of(compare(studied(tmp_path, losses)), "Switch, dropless", "dense").estimate
    assert estimate is not None and estimate.freedom == 3 and estimate.count == 2
    assert estimate.mean == pytest.approx(-0.1, abs=0.005) and estimate.error is not None  # not 1.455 - 1.603


def test_runs_of_two_lengths_share_no_deviation_and_are_not_compared() -> None:
    def sweep(name: str, steps: int, shift: float) -> list[Record]:
        runs = [
            record(config_of(seed, **model), y + shift, sweep=name)
            for model, own in ((DENSE, [1.5, 1.6, 1.7]), (ONE, [1.4, 1.52, 1.63]))
            for seed, y in enumerate(own)
        ]
        return [replace(run, config={**run.config, "trainer.max_steps": steps}) for run in runs]

    both = study([*sweep("short", 100, 0.0), *sweep("long", 200, -0.3)])
    alone = of(compare(study(sweep("short", 100, 0.0))), "Switch, factor 1.0", "dense")
    top, text = words(both)
    control = [d for d in compare(both) if d.family == "control"]
    wider = t_quantile(2, 1 - 0.05 / 2) / t_quantile(2)  # one in each group: two are corrected for
    assert len(control) == 2 and all(half(d) == pytest.approx(half(alone) * wider) for d in control)
    assert "The runs form 2 groups that differ in `trainer.max_steps`: nothing is compared between them." in text
    assert top.count(" beats ") == 2
    assert "4 comparisons with an interval, in 2 families" in comparison_table(compare(both)).note  # no curves
    loose = study([replace(run, sweep=None) for run in both.records])  # runs of no sweep are one group
    assert len(loose.cohorts) == 1


def test_a_wide_variant_is_marked_and_the_rule_stands_in_the_note(tmp_path: Path) -> None:
    noise = [0.0, 0.004, -0.003, 0.002, -0.004]
    losses = {
        "dense": [1.5 + e for e in noise], "one": [1.49 - e for e in noise], "2.0": [1.48 + e / 2 for e in noise],
        "dropless": [1.4, 1.6, 1.3, 1.7, 1.5],
    }  # fmt: skip
    differences = compare(studied(tmp_path, losses))
    table = comparison_table(differences)
    assert {row[0].text for row in table.rows if "dropless" in row[0].text} == {
        "Switch, dropless‡", "Switch, dropless",  # its times are not in the pool of losses
    }  # fmt: skip
    assert (
        f"‡ scatters over {LEFT_OUT:g} times as much as the others, so much by chance in less than 1% of sweeps: not "
        "in the common deviation." in table.note
    )
    text = words(studied(tmp_path / "again", losses))[1]
    assert (
        ", but for `Switch, dropless`; `Switch, factor 1.0`: so many seeds can detect a" in text
        and "from `dense`, on average, with 80% power" in text
    )
    estimate = of(differences, "Switch, dropless", "dense").estimate
    assert estimate is not None and estimate.freedom == pytest.approx(4, abs=0.01)  # of its own five seeds
    assert "‡" not in comparison_table(compare(studied(tmp_path / "b", LOSSES))).note


def test_equal_differences_give_no_interval(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.6, 1.8], "dropless": [1.4, 1.5, 1.7]})
    ((*_, difference, ends, verdict, _, _), *_) = rows(result)
    assert (difference, ends, verdict) == ("-0.1000", "-", "no spread")
    rule = "No spread: all agree, or too few runs share seeds; no deviation is known."
    assert rule in comparison_table(compare(result)).note


def test_a_search_has_no_intervals_and_no_comparisons(tmp_path: Path) -> None:
    write_plan(tmp_path / "search", None)
    for trial, (alpha, loss) in enumerate([(0.01, 1.5), (0.02, 1.4), (0.02, 1.42)]):
        job = {"job": trial, "overrides": {"alpha": alpha, "seed": trial}}
        write_run(tmp_path / "search" / f"{trial}", config_of(trial, alpha=alpha), loss, job=job)
    result = study(read_records(find_sources([tmp_path / "search"])))
    top, text = words(result)
    assert rows(result) == [] and text.count("The trials of a search were chosen by their results") == 1
    start = (
        "The lowest loss at the last step, of `alpha 0.02`, is 1.4100, chosen from the trials of a search, so too low;"
    )
    assert top.startswith(start)
    assert "±" not in str([cell.text for row in table_1(result, []).rows for cell in row])


def test_the_report_states_what_such_a_sweep_resolves(tmp_path: Path) -> None:
    losses = {"dense": [1.5, 1.6, 1.7], "dropless": [1.48, 1.57, 1.66]}
    text = words(studied(tmp_path, losses))[1]
    # The deviation of a difference is 0.01, so of a run 0.01 / sqrt(2); (4.30265 + 1.06066) x 0.01 / sqrt(3)
    power = "so many seeds can detect a 0.031-nat difference from `dense` with 80% power."
    assert f"The standard deviation across seeds is 0.0071 nats: {power}" in text
    single = json.dumps(words(studied(tmp_path / "b", {"dense": [1.5], "dropless": [1.4]})))
    assert "can detect" not in single


def test_dense_variants_and_those_of_unequal_computation_have_a_control_too(tmp_path: Path) -> None:
    losses = {"dense": [1.5, 1.6], "wide": [1.4, 1.5], "one": [1.5, 1.6], "top2": [1.4, 1.5]}
    control = [row for row in rows(studied(tmp_path, losses)) if row[6] == "control"]
    assert [(row[0], row[1], row[7].partition(" (")[0]) for row in control] == [
        ("Switch, factor 1.0", "dense", "equal in the model's products"),
        ("top-2, factor 2.5", "dense", "unequal computation"),
        ("dense, d_ff 4096", "dense", "d_ff"),
    ]


def test_a_sparse_variant_that_has_no_dense_control_is_not_compared_with_dense_in_the_lead() -> None:
    models = [DENSE, DROPLESS | {"dropout": 0.1}]
    runs = [
        record(config_of(seed, **m), 1.5 + 0.1 * seed + 0.01 * i * seed)
        for i, m in enumerate(models)
        for seed in (0, 1)
    ]
    top, _ = words(study(runs))
    assert "whether Switch beats dense cannot be said." in top and "lower" not in top and "higher" not in top


def test_two_sweeps_of_seeds_alone_are_compared_like_loose_runs_and_others_only_within_what_they_varied() -> None:
    def sweep(name: str, *models: dict[str, Any]) -> list[Record]:
        return [record(config_of(seed, **m), 1.5 + 0.1 * seed, sweep=name) for m in models for seed in (0, 1)]

    assert len(study([*sweep("a", ONE), *sweep("b", DROPLESS)]).cohorts) == 1
    assert len(study([*sweep("a", ONE, DROPLESS), *sweep("b", ONE | {"num_experts": 4})]).cohorts) == 2


def test_the_report_of_the_capacity_sweep_is_no_longer_than_the_one_published_before(tmp_path: Path) -> None:
    models = {"dense": DENSE, "as_many": DENSE | {"d_ff": 632}, "one": ONE, "dropless": DROPLESS}
    models |= {f"{factor}": {"capacity_factor": factor} for factor in (0.5, 1.25, 2.0)}
    noise = [0.0, 0.004, -0.003, 0.002, -0.004]
    losses = {name: [1.5 - 0.01 * n + e / (1 + n % 2) for e in noise] for n, name in enumerate(models)}
    result = study(read_records(find_sources([write_sweep(tmp_path / "capacity_sweep", models, losses)])))
    document = build(result, compare(result), title="Report on capacity_sweep")
    assert len(document.lead) < 800 and len(compare(result)) == 20
    assert 10_000 < len(to_markdown(document, pictures="capacity_sweep_pictures").encode()) <= 16_188
