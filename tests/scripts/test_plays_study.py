"""The study of `data=plays`: what is run and in which order, what continues, and what its page says."""

from __future__ import annotations

import json
import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from switch_lm.config.overrides import composed
from switch_lm.stats.speed_up import speed_up_of_mean

# Import as `python scripts/plays_study.py` does.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    plan, report, runner = (import_module(f"study.{name}") for name in ("plan", "report", "runner"))

STEP = {"dense": 1.0, "switch": 1.25, "16 experts": 1.5, "64 experts": 2.5, "4 experts": 1.2}  # of dense's seconds


def loss(job: Any) -> float:
    """Dense falls by 0.1 with each doubling of the steps; 16 experts need half the steps, all others as many."""
    level = 2.0 - 0.1 * math.log2(job.steps * (2.0 if job.model == "16 experts" else 1.0))
    tuned = 0.01 * ("lr=0.02" not in job.overrides) + 0.01 * ("dropout=0.1" in job.overrides)
    return level + tuned * (job.part == plan.TUNING) + 0.001 * job.seed


def line(job: Any) -> dict[str, str]:
    gained = 0.01 + 0.001 * (job.text == "plays")
    averaged = {name: loss(job) + sign * gained for name, sign in zip(plan.AVERAGES, (1, 0, -1), strict=True)}
    figures = {"val_loss": loss(job), "seconds": job.steps, "averaged": json.dumps(averaged)}
    row = dict.fromkeys(plan.Results.COLUMNS, "") | dict(zip(plan.Results.KEY, job.key, strict=True)) | figures
    return {key: str(value) for key, value in row.items()}


def finished(parts: tuple[str, ...] = plan.PARTS) -> Any:
    results = plan.Results()
    while left := [job for job in results.missing(plan.jobs(results)) if job.part in parts]:
        results = plan.Results((*results.rows, *map(line, left)))
    return results


def test_the_recipes_take_what_was_tuned_and_each_run_has_a_name_of_its_own() -> None:
    tuned = finished((plan.TUNING,))
    assert len(tuned.rows) == 24
    assert plan.chosen(tuned, "dense", "plays") == "model=dense optim.matrix_lr=0.02 model.dropout=0.0"
    jobs = list(plan.jobs(tuned))
    assert len({job.name for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    assert {job.part for job in jobs} == set(plan.PARTS)
    assert not any("tuning" in job.overrides for job in jobs if job.part != plan.TUNING)
    assert sum(job.steps for job in jobs) < 150_000


def test_every_kind_of_run_is_a_configuration_that_is_taken() -> None:
    kinds = {(job.part, job.model): job for job in plan.jobs(finished())}
    assert len(kinds) == 11
    for job in kinds.values():
        config = composed(job.words)
        assert (config.seed, config.trainer.max_steps, config.data.text) == (job.seed, job.steps, job.text)
        assert (config.data.split == "tuning") is (job.part == plan.TUNING)


def test_the_page_says_where_sparse_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "plays_study.md")
    results = finished()
    report.write(results, {})
    assert "Nothing has been timed yet" in report.PAGE.read_text()
    times = {name: {"seconds": {"median": 0.1 * STEP[name.split(", ")[1]]}} for name in plan.timed(results)}
    report.write(results, {"entries": times})
    page = report.PAGE.read_text()
    pays, loses = (
        part.split("it loses with")[0] if not n else part for n, part in enumerate(page.split("it loses with")[:2])
    )
    assert "with 16 experts (width 64 on tiny_shakespeare, width 64 on plays, width 128 on plays)" in pays
    assert "4 experts (width 64 on" in loses and "8 experts (width 128 on plays)" in loses
    assert "| 64 | plays | 16 | 1.33 (" in page  # half the steps of 1.5 times the seconds
    assert page.count("| chosen |") == 4 and "none is missing" in page
    assert "| `0.99` | 0.0105 ± " in page and "| `tail_0.2` | -0.0105 ± " in page and page.count("| helps |") == 1
    assert (tmp_path / "plays_pictures" / "effective_speed_up.png").is_file()


@pytest.mark.parametrize(("level", "half", "says"), [
    (1.5, 0.1, (2.0, (1.0, 4.0))), (1.5, None, (2.0, None)), (1.8, 0.4, (1.0, (0.0, 16.0))),
    (2.5, 0.1, (None, (0.0, 0.0))), (2.11, 0.1, (None, (0.0, 2**-2.1))),
])  # fmt: skip
def test_a_speed_up_of_means_is_read_off_the_curve(level: float, half: float | None, says: Any) -> None:
    curve = {2.0**n: 1.9 - 0.1 * n for n in range(-2, 8)}  # 0.1 lower with each doubling
    found = speed_up_of_mean(curve, level, half, 8.0 if level == 1.5 else 2.0)
    assert found.ratio == (says[0] and pytest.approx(says[0], rel=1e-6)) and not found.faster
    assert found.interval == (says[1] and pytest.approx(says[1], rel=1e-6))


def test_the_runner_keeps_what_is_finished_tries_again_what_failed_and_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the training command: seed 1 fails the first time, seed 2 never ends by itself."""
    monkeypatch.setattr(plan, "OUTPUTS", tmp_path)
    stand_in = (
        "import json, pathlib, sys, time\n"
        "words = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)\n"
        f"folder = pathlib.Path({str(tmp_path)!r}) / 'runs' / words['name']\n"
        "first = not folder.exists()\n"
        "folder.mkdir(exist_ok=True)\n"
        "if words['seed'] == '1' and first: sys.exit(1)\n"
        "if words['seed'] == '2' and first: time.sleep(60)\n"
        "result = {'val_loss': 1.5, 'seconds': 2.0, 'val_loss_averaged': {}, 'versions': {'torch': '2'},"
        " 'hardware': {'name': 'a', 'precision': 'fp32'}}\n"
        "(folder / 'result.json').write_text(json.dumps(result))\n"
    )
    (tmp_path / "stand_in.py").write_text(stand_in)
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.setattr(runner, "POLL", 0.02)
    jobs = [plan.Job("recipes", "switch", "plays", "", seed, 10) for seed in range(3)]
    outcomes = []
    for seconds in (2.0, 20.0):
        results = plan.Results.read(tmp_path / "lines.csv")
        one = runner.Runner(tmp_path / "lines.csv", results, lambda _: jobs, 2, time.monotonic() + seconds)
        outcomes.append((one.run(), sorted(plan.Results.read(tmp_path / "lines.csv").keys)))
    keys = [job.key for job in jobs]
    assert outcomes == [(False, keys[:1]), (True, keys)]
    assert one.seconds_left() == 0.0
