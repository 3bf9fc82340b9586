"""The command: which files it writes where, what it prints, and what it does with what cannot be reported."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import DENSE, DROPLESS, ONE, config_of, write_curve, write_plan, write_run, write_sweep

from switch_lm.config.plugins import command_line
from switch_lm.report import main
from switch_lm.reporting.write import Written, write_report

NASTY = "<b>a|b</b> *x* `y` [z](w) & $e$"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """A sweep with a failed job, one stopped half way, one never started, a broken metrics.jsonl and a nasty name."""
    folder = tmp_path_factory.mktemp("report")
    sweep = write_sweep(folder / "sweep", {"dense": DENSE, "one": ONE, "dropless": DROPLESS}, {
        "dense": [1.5, 1.51], "one": [1.48, 1.49], "dropless": [1.47],
    })  # fmt: skip
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    failed = sweep / "seed=7,variant=bad"
    failed.mkdir()
    record = {"job": len(jobs), "status": "failed", "error": f"the loss became nan: {NASTY}"}
    (failed / "job.json").write_text(json.dumps(record))
    write_run(sweep / NASTY.replace("/", ""), config_of(3, **ONE), None, curve=[(25, 2.0, 25.0)])
    broken = write_run(sweep / "broken", config_of(2, **ONE), 1.47, curve=[])
    (broken / "metrics.jsonl").write_text("nonsense\n" * 9)
    write_plan(sweep, [*jobs, {"seed": 7, "variant": "bad"}, {"seed": 8, "variant": "late"}])
    return sweep, write_report([sweep])


def test_all_files_lie_in_the_sweeps_folder(mixed: tuple[Path, Written]) -> None:
    sweep, written = mixed
    assert (written.markdown, written.page, written.table, written.pictures) == tuple(
        sweep / name for name in ("report.md", "report.html", "summary.csv", "pictures")
    )
    pngs, svgs = ({p.stem for p in written.pictures.glob(f"*.{kind}")} for kind in ("png", "svg"))
    assert pngs == svgs and {"frontier_training_computation", "learning_by_step"} <= pngs
    assert not list(sweep.glob(".*"))  # nothing temporary is left


def test_every_run_that_has_no_result_is_reported_with_its_reason(mixed: tuple[Path, Written]) -> None:
    _, written = mixed
    text, page = written.markdown.read_text(), written.page.read_text()
    assert "sweep/seed=7,variant=bad | failed | the loss became nan" in text
    assert "unfinished | step 25 of 100 is the last one recorded" in text
    assert "sweep/seed=8,variant=late | not run | planned, not started: seed=8 variant=late" in text
    assert "sweep/broken" in text and "metrics.jsonl, line 1: not a JSON object" in text
    assert text.count("Of 9 runs, 6 are used; 1 failed, 1 unfinished, 1 not run: see What was run.") == 1
    assert "python -m switch_lm.train experiment=test" in text
    assert "<b>a" not in page and "&lt;b&gt;a" in page
    with written.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["status"] for row in rows) == ["done"] * 6 + ["failed", "not run", "unfinished"]
    assert all(None not in row and None not in row.values() for row in rows)


def test_the_words_stand_in_the_report_and_on_the_screen(
    mixed: tuple[Path, Written], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, written = mixed
    assert main([str(sweep), "--name", "again", "--threshold", "1.6"]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # however its lines are broken
    assert printed.startswith(written.verdict.replace("`", "") + " Best ")
    assert [tile.name for tile in written.tiles.items] == ["Best", "Cheapest", "Dropped", "Seeds"]
    assert all(f"{tile.name:<8}".strip() + f" {tile.value}, " in printed for tile in written.tiles.items)
    again = command_line("switch_lm.train", "experiment=test")
    assert f"try next: {again} # runs what is missing try next: " in printed
    assert written.verdict in written.markdown.read_text().split("\n- ")[0]
    assert "Loss after 100" in printed
    assert f"report: {sweep / 'again.md'}, again.html, again.csv, again_pictures/" in printed
    assert (sweep / "again_pictures" / "learning_by_step.png").is_file()
    text = (sweep / "again.md").read_text()
    assert "- **Best: 1." in text
    assert "again_pictures/" in text and "| Steps to a loss of 1.6 |" in text


def test_a_report_of_runs_goes_below_outputs_and_replaces_its_own_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("outputs/runs/alone"), config_of(), 1.5, curve=[])
    first = write_report(["alone"])
    assert first.markdown == Path("outputs/reports/alone/report.md")
    for name in ("mine.png", "old.png", "old.svg"):
        (first.pictures / name).write_text("somebody's own, or of the report before")
    first.markdown.write_text(f"{first.markdown.read_text()}\n![old](pictures/old.png)\n")
    write_curve(run, [(50, 1.9, 50.0), (100, 1.5, 100.0)])
    assert write_report(["outputs/runs/al*", "alone"], out=first.markdown.parent).page == first.page
    assert sorted(path.name for path in first.pictures.glob("*.png")) == [
        "learning_by_seconds.png", "learning_by_step.png", "mine.png", "training_loss.png",
    ]  # fmt: skip
    assert not (first.pictures / "old.svg").exists()


def test_a_sweep_of_which_all_jobs_failed_has_a_report_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "job"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"job": 0, "status": "failed", "error": "no text"}))
    written = write_report([tmp_path / "sweep"])
    assert written.verdict == "No run is finished: there is nothing to compare yet."
    assert "sweep/job | failed | no text" in written.markdown.read_text()


def test_what_cannot_be_reported_ends_with_exit_code_1_and_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "it has no run" in capsys.readouterr().err
    run = write_run(tmp_path / "run", config_of(), 1.5, curve=[])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("switch_lm.reporting.write.read_records", None)  # the folder is tried before any run is read
    assert main([str(run), "--out", str(tmp_path / "file" / "below")]) == 1
    assert capsys.readouterr().err.endswith(
        "Not a directory; a report must go to a folder that can be written; give another with --out FOLDER\n"
    )


def test_a_run_of_unknown_seed_is_shown_under_its_name_and_compared_with_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, config in {"dense": config_of(**DENSE), "one": config_of(**ONE), "[b]": config_of(**ONE)}.items():
        write_run(tmp_path / "runs" / name, config, 1.5, curve=[], seed=None)
    unknown = tmp_path / "runs" / "[b]" / "config.yaml"
    unknown.write_text(unknown.read_text().replace("seed: 0\n", ""))
    assert main([str(tmp_path / "runs")]) == 0
    assert "([b])" in capsys.readouterr().out
    text = (tmp_path / "runs" / "report.md").read_text()
    assert text.count("seed unknown") > 3 and "its seed is not known" in text
    assert "seed unknown" not in text.split("**All comparisons")[1].split("## Drops and balance")[0]


@pytest.mark.parametrize("options", [["--threshold", "0"], ["--threshold", "x"], ["--name", "../x"], []], ids=str)
def test_a_wrong_option_ends_with_exit_code_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["somewhere", *options] if options else [])
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_a_report_needs_neither_torch_nor_hydra_and_help_needs_no_pictures(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, config_of(seed), 1.5 + seed / 10) for seed, name in enumerate("ab")]
    modules = "import atexit, sys; atexit.register(lambda: print(*sys.modules))"
    code = f"{modules}; from switch_lm.report import main; main(sys.argv[1:])"

    def loaded(*arguments: str | Path) -> tuple[str, set[str]]:
        command = [sys.executable, "-c", code, *arguments]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return shown, set(shown.splitlines()[-1].split())

    heavy = {"torch", "hydra", "lightning", "requests", "tensorboard"}
    _, report = loaded(*runs, "--out", tmp_path)
    assert "scipy.special" in report and not report & heavy
    text, usage = loaded("--help")
    assert "--threshold LOSS" in text and not usage & (heavy | {"matplotlib", "scipy", "rich"})
