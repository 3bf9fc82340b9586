"""The router league: what is run, when the steps are doubled, what is stored of a run, and what the report says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from switch_lm.stats.corrections import planned

# Import as `python scripts/league.py` does.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    plan: Any = import_module("contest.plan")
    report: Any = import_module("contest.report")
    session: Any = import_module("contest.session")

STEPS, NOISE = 400, (0.004, -0.003, 0.001, -0.005, 0.003)
LOSS = {
    "switch_dropless": 1.80, "hash": 1.80, "frozen": 1.90, "uniform": 2.00, "sigmoid_top1": 1.70, "dense": 1.85,
    "expert_choice_1.0": 1.50, "threshold_top1": 1.82,
}  # fmt: skip


def row(job: Any, loss: float, **changes: Any) -> dict[str, Any]:
    """A line of the file; experts per token are those of the entry's class."""
    experts = {entry.variant: entry.experts for entry in plan.ENTRIES}[job.variant]
    noise = NOISE[(job.seed + len(job.variant)) % 5] + 0.01 * (job.seed % 5)  # the last: common to all of a seed
    figures = {
        "val_loss": loss + noise,
        "seconds": 50.0,
        "experts_per_token": experts,
        "dropped": 0.0,
        "commit": "c0ffee",
    }
    return dict(zip(plan.KEY, job.key, strict=True)) | figures | {"active_parameters": 3e5, "machine": "m"} | changes


@pytest.fixture
def league(tmp_path: Path) -> Any:
    return plan.League(data=tmp_path / "data", page=tmp_path / "routers.md", outputs=tmp_path / "outputs")


def played(league: Any, gap: float = 0.1, **losses: float) -> Any:
    """All lines of a league in which frozen lost to switch by `gap` before it."""
    results = plan.Results(())
    for part in plan.PARTS:
        for job in league.jobs(part, STEPS):
            level = gap * (job.variant == "frozen") + 1.8
            if part == plan.TABLE:
                level = (LOSS | losses).get(job.variant, 1.6) + 0.01 * (job.capacity_factor is not None)
            if part == plan.DENSE_CURVE:
                level = LOSS["dense"] - 0.3 * (job.steps / STEPS - 1.0)
            line = {name: "" if value is None else str(value) for name, value in row(job, level).items()}
            if job.variant == "threshold_top1":
                line["experts_per_token"] = "1.031"
            results = plan.Results((*results.rows, dict.fromkeys(plan.COLUMNS, "") | line))
    return results


def timed() -> dict[str, Any]:
    """Dense takes 0.1 s per step, everything else twice that."""
    names = [plan.name_of(e.variant, f) for e in plan.ENTRIES for f in (None, plan.FACTORS[e.experts])]
    spread = {name: 0.1 if name == "dense" else 0.2 for name in names}
    figures = {
        name: {"seconds": {"median": s}, "to_dense": {"median": 10 * s, "low": 10 * s, "high": 10 * s}}
        for name, s in spread.items()
    }
    return {"all": {"took": 1.0, "commit": "c0ffee", "entries": figures, "repetitions": 30, "threads": 2, "idle": 1.0}}


def test_only_what_is_missing_is_run_and_a_finished_run_is_a_line(league: Any) -> None:
    jobs = league.jobs(plan.POWER, STEPS)
    assert [(job.seed, job.variant) for job in jobs[:3]] == [
        (100, "switch_dropless"), (100, "frozen"), (101, "switch_dropless")
    ]  # fmt: skip
    results = plan.Results(()).add(row(jobs[0], 1.8), league.csv)
    assert plan.Results.read(league.csv) == results and results.missing(jobs) == jobs[1:]
    assert league.csv.read_text().count("\n") == 2 and results.missing([replace(jobs[0], steps=250)])


@pytest.mark.parametrize(("factor", "doubles"), [(0.9, True), (1.1, False)])
def test_the_steps_are_doubled_once_where_the_power_runs_differ_by_less_than_is_resolved(
    league: Any, factor: float, doubles: bool
) -> None:
    assert plan.steps_of(plan.Results(()), league) is None
    deviation = plan.power(played(league), league).deviation
    resolved = planned(9, 5, deviation)
    assert resolved is not None
    shift = plan.power(played(league, gap=0.0), league).difference  # what the noise alone makes of it
    results = played(league, gap=factor * resolved + shift)
    assert plan.steps_of(results, league) == (2 * STEPS if doubles else STEPS)
    assert plan.steps_of(results, replace(league, rehearsal=True)) == STEPS


def test_a_run_is_described_by_its_last_tenth_of_steps(league: Any) -> None:
    job = league.jobs(plan.TABLE, 100)[0]
    folder = league.folder(job)
    folder.mkdir(parents=True)
    assert folder.name == "seed=0,variant=switch_dropless,trainer.max_steps=100"
    lines = [
        {f"moe/layer_{layer:02d}/kept/expert_{e:02d}": kept + e for layer in (0, 2) for e in (0, 1)}
        | {"step": step, "time": 1.0}
        for step, kept in ((90, 999), (95, 10), (100, 20))
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = {
        "val_loss": 1.5, "seconds": 3.0, "computation": {"tokens_per_step": 62}, "versions": {"torch": "2.13"},
        "hardware": {"name": "x86_64, 2 threads", "precision": "fp32"}, "corpus_sha256": "86",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    stored = plan.row_of(job, folder, machine="EPYC", commit="c0ffee")
    assert stored["experts_per_token"] == pytest.approx((21 + 41) / 2 / 62) and stored["val_loss"] == 1.5
    assert stored["machine"] == "EPYC, x86_64, 2 threads, fp32" and set(stored) <= set(plan.COLUMNS)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({}, r"In part: .* has a lower loss than `frozen` by 0.1000 nats .0.0\d+ to 0.1\d+., `uniform` by 0.2000.*; it is not "
             r"resolved from `hash` .\+0.0000, -0.0"),
        ({"hash": 1.95}, "Yes: .* has a lower loss than `frozen` by .* `hash` by 0.1500 .* `uniform` by 0.2"),
        ({"frozen": 1.7, "hash": 1.7, "uniform": 1.8}, "No: .* has a higher one than `frozen` by .*; it is not resolved from"),
    ],
)  # fmt: skip
def test_the_first_sentence_answers_the_title(league: Any, losses: dict[str, float], says: str) -> None:
    lead = report.document(report.Standing(league, played(league, **losses), {}, STEPS)).lead
    assert "(300,000 active parameters, 400 steps on Tiny Shakespeare) learned routing, `switch`," in lead
    assert re.match(says, lead), lead


def test_the_page_is_made_of_the_stored_results_alone(league: Any) -> None:
    verdicts = {"verdicts": {"PASS": ["a"] * 20, "LEAKS": ["own future, training"], "FAIL": []}, "gap": "-0.2 nats"}
    shares = {label: {"share": 0.5, "half": 0.01} for label in report.EXPLAIN}
    facts = {"took": 1.0, "commit": "c0ffee"}
    stages = {
        "certificate": {"expert_choice_1.0": verdicts | facts}, "explanation": {"hash": shares | facts}, "seconds": timed(),
    }  # fmt: skip
    assert report.write(league, played(league), stages) is None
    page = league.page.read_text()
    rows = {cells[1].strip("`"): cells for line in page.splitlines()[::-1] if len(cells := line.split(" | ")) > 8}
    assert rows["expert choice, factor 1"][0] == "| 1" and rows["sigmoid"][0] == "| 2"
    assert rows["threshold, 1 expert"][0] == "| not ranked"  # 3.1 % more experts per token
    assert "20 PASS; LEAKS: own future, training (training rule less generation: -0.2 nats)" in page
    assert re.search(r"`expert choice, factor 1` \| 200.00 \| 2.00 \(2.00 to 2.00\) \| over 1.00", page)
    assert re.search(r"`uniform` \| 200.00 \| .* \| 0\.2\d \(", page)  # dense needs half the steps
    assert "None: " not in page and "`expert choice, factor 1`: of those with about one" in page
    pictures = re.findall(r"\]\((\S+)\)", page)
    assert len(pictures) == 2 and all((league.page.parent / one).is_file() for one in pictures)
    assert "0 are missing" not in page and "none is missing" in page


def test_what_is_not_finished_is_not_reported(league: Any) -> None:
    rows = [one for one in played(league).rows if one["variant"] != "hash"]
    assert "nothing to report" in report.write(league, plan.Results(tuple(rows)), {}) and not league.page.exists()


def test_the_time_left_counts_what_is_missing_at_the_speed_of_what_is_done(league: Any) -> None:
    rows = played(league).rows
    league.data.mkdir()
    plan.store(league.stages, {})
    one = session.Session(league, 0.0)
    one.results = plan.Results(rows[:-2])
    stages = sum(session.GUESSED.values()) + 13 * (session.GUESSED["certificate"] + session.GUESSED["explanation"])
    assert one.seconds_left() == pytest.approx(
        stages + sum(int(row["steps"]) * 50.0 / STEPS for row in rows[-2:]), rel=0.2
    )
    with pytest.raises(session.OutOfTime):
        one.check_time()
