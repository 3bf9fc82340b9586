"""What a report reads: which runs a path means, what became of each, and files that are missing or broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import DENSE, DROPLESS, ONE, config_of, write_plan, write_run, write_sweep

from switch_lm.reporting.records import Point, Record, ReportError, crossing, find_sources, read_records


def records(*paths: object, outputs: Path = Path("outputs")) -> dict[str, Record]:
    return {record.name: record for record in read_records(find_sources([str(path) for path in paths], outputs))}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """One job finished, one failed before it had a configuration, one stopped at step 50, one never started."""
    sweep = tmp_path / "outputs" / "sweeps" / "mixed"
    write_run(sweep / "seed=0,variant=dense", config_of(**DENSE), job={"job": 0, "status": "done"})
    write_failure(sweep / "seed=0,variant=bad", 1, "model.d_ff=0: must be at least 1;\nfor example model.d_ff=512")
    write_run(sweep / "seed=1,variant=dense", config_of(1, **DENSE), None, curve=[(25, 2.2, 25.0), (50, 2.0, 50.0)])
    jobs = [(0, "dense"), (0, "bad"), (1, "dense"), (1, "bad")]
    write_plan(sweep, [{"seed": seed, "variant": variant} for seed, variant in jobs])
    return sweep


def write_failure(folder: Path, number: int, error: str) -> None:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"job": number, "status": "failed", "error": error}))


def test_each_job_of_a_sweep_is_reported_with_what_became_of_it(mixed: Path) -> None:
    runs = records(mixed)
    assert {name: (record.status, record.reason) for name, record in runs.items()} == {
        "mixed/seed=0,variant=bad": ("failed", "model.d_ff=0: must be at least 1; for example model.d_ff=512"),
        "mixed/seed=0,variant=dense": ("done", ""),
        "mixed/seed=1,variant=dense": ("unfinished", "step 50 of 100 is the last one recorded"),
        "mixed/seed=1,variant=bad": ("not run", "planned, not started: seed=1 variant=bad"),
    }


def test_a_run_before_its_first_event_is_unfinished(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config_of(), None, curve=[])
    assert records(tmp_path / "run")["run"].reason == "no step of 100 recorded"


def test_a_path_may_be_a_sweep_a_run_a_name_or_a_glob_and_each_run_counts_once(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixed.parent.parent.parent)
    write_run(Path("outputs/runs/alone"), config_of())
    all_jobs = set(records(mixed))
    assert len(all_jobs) == 4
    assert set(records("mixed")) == all_jobs
    assert set(records("outputs/sweeps/*")) == all_jobs
    assert set(records("mixed", mixed / "seed=0,variant=dense", "mixed/*")) == all_jobs
    assert set(records("alone")) == set(records("outputs/runs/al*")) == set(records("outputs/runs")) == {"alone"}
    assert set(records("mixed/seed=*,variant=dense")) == {f"mixed/seed={seed},variant=dense" for seed in (0, 1)}


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "a[b]*c", config_of())
    assert set(records(tmp_path / "a[b]*c")) == {"a[b]*c"}


@pytest.mark.parametrize("path", ["empty", "empty/*", "nowhere", ""])
def test_a_path_without_a_run_is_an_error_with_the_fix(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ReportError) as error:
        records(path)
    assert path in str(error.value) and "a sweep's folder" in str(error.value) and "glob" in str(error.value)


def test_the_curve_has_the_loss_and_the_seconds_of_each_validation(tmp_path: Path) -> None:
    run = records(write_run(tmp_path / "run", config_of(), 1.5))["run"]
    assert [(p.step, p.loss, p.seconds) for p in run.curves.validations] == [
        (25, 2.25, 25.0), (50, 2.0, 50.0), (75, 1.75, 75.0), (100, 1.5, 100.0),
    ]  # fmt: skip
    assert run.faults == ()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "it has no metrics.jsonl"),
        (b"", "there is no validation in its metrics.jsonl"),
        (b"\x00" * 40, "there is no validation in its metrics.jsonl"),
        (b'{"step": 1, "time": 0.1}\nx\n', "metrics.jsonl, line 2: not a JSON object with step and time"),
    ],
)
def test_missing_or_broken_metrics_are_reported_and_stop_nothing(
    content: bytes | None, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", config_of(), 1.5, curve=[])
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    run = records(folder)["run"]
    assert run.status == "done" and run.figure("val_loss") == 1.5
    assert run.curves.validations == () and fault in run.faults[0]
    assert capfd.readouterr().err == ""


def test_a_curve_that_is_cut_off_or_holds_nan_is_reported(tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", config_of(), 1.5, curve=[(25, 2.0, 25.0), (50, 1.9, None)])
    broken = write_run(tmp_path / "nan", config_of(), 1.5, curve=[(25, float("nan"), 25.0), (100, 1.5, 100.0)])
    assert records(short)["short"].faults == ("its metrics.jsonl ends at the validation of step 50, of 100",)
    assert [point.step for point in records(broken)["nan"].curves.validations] == [100]
    assert "NaN" in records(broken)["nan"].faults[0]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config_of(), 1.5)
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    run = records(folder)["run"]
    assert [point.step for point in run.curves.validations] == [25, 50, 75]


def test_broken_files_are_reported_and_an_infinite_figure_is_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config_of(), 1.5)
    (folder / "result.json").write_text('{"val_loss": 1.')
    run = records(folder)["run"]
    assert run.status == "unfinished" and "result.json cannot be read" in run.faults[0]
    (folder / "result.json").write_text('{"val_loss": NaN, "steps": true, "dropped": null, "seconds": 3}')
    run = records(folder)["run"]
    assert [run.figure(key) for key in ("val_loss", "steps", "dropped", "missing", "seconds")] == [None] * 4 + [3.0]
    (folder / "config.yaml").write_text("a: [")
    run = records(folder)["run"]
    assert run.config == {} and "config.yaml is damaged" in run.faults[0]


def test_a_key_that_a_run_did_not_know_yet_has_its_default(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config_of(), 1.5)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  random_drop_rate: 0.0\n", ""))
    assert "random_drop_rate" not in (folder / "config.yaml").read_text()
    assert records(folder)["run"].config["router.random_drop_rate"] == 0.0


def test_a_seed_that_no_file_states_is_unknown_and_not_the_default(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config_of(3), 1.5, seed=None)
    assert records(folder)["run"].seed == 3
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("seed: 3\n", ""))
    run = records(folder)["run"]
    assert run.seed is None and run.config["trainer.max_steps"] == 100
    assert run.faults == ("its seed is not known: it is neither averaged nor compared with other runs",)
    write_run(tmp_path / "stated", config_of(3), 1.5, seed=4)
    (tmp_path / "stated" / "config.yaml").write_text(text.replace("seed: 3\n", ""))
    assert records(tmp_path / "stated")["stated"].seed == 4


def test_a_whole_sweep_is_read_by_seed(tmp_path: Path) -> None:
    variants = {"dense": DENSE, "one": ONE, "dropless": DROPLESS}
    sweep = write_sweep(tmp_path / "sweep", variants, {name: [1.5, 1.6] for name in variants})
    runs = records(sweep)
    assert [(r.status, r.seed) for r in runs.values()] == [("done", 0)] * 3 + [("done", 1)] * 3


def test_a_threshold_is_crossed_on_the_straight_line_between_two_validations() -> None:
    curve = [Point(100, 2.0, 10.0), Point(200, 1.5, 30.0), Point(300, 1.6, 50.0)]
    hit = crossing(curve, 1.6)
    assert hit is not None  # four fifths of the way, and not again at step 300
    assert hit.steps == pytest.approx(180.0) and hit.seconds == pytest.approx(26.0) and not hit.at_most


def test_a_threshold_that_is_met_at_once_is_met_at_most_then_and_another_never() -> None:
    curve = [Point(100, 2.0, 10.0), Point(200, 1.5)]
    hit = crossing(curve, 2.0)
    assert hit is not None and hit.at_most and hit.steps == 100
    assert crossing(curve, 1.49) is None
    assert crossing([], 1.0) is None
    late = crossing(curve, 1.75)
    assert late is not None and late.steps == 150 and late.seconds is None
