"""The router league: what is run, when the steps are doubled, what is stored of a run, and what the report says."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from switch_lm.config.overrides import composed
from switch_lm.stats.corrections import planned

# Import as `python scripts/league.py` does.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    plan, report, session = (import_module(f"contest.{name}") for name in ("plan", "report", "session"))

STEPS, NOISE = 400, (0.004, -0.003, 0.001, -0.005, 0.003)
LOSS = {
    "switch_dropless": 1.8,
    "switch_quantile": 1.8,
    "sigmoid_quantile": 1.8,
    "hash": 1.8,
    "frozen": 1.9,
    "uniform": 2.0,
    "dense": 1.85,
}
LOSS |= {"sigmoid_top1": 1.7, "expert_choice_1.0": 1.5, "threshold_top1": 1.82}


def line(job: Any, loss: float) -> dict[str, str]:
    """Of the file. Thresholds compute 3.1% more than one expert per token, all others as many as their class says."""
    experts = {entry.variant: entry.experts for entry in plan.ENTRIES} | {"threshold_top1": 1.031}
    dropped = 0.1 if job.capacity_factor else 0.0  # which leaves an entry in its class
    loss += 0.01 * (job.seed % 5) + NOISE[(job.seed + len(job.variant)) % 5]  # the first is common to all of a seed
    figures = {"val_loss": loss, "seconds": 50.0, "dropped": dropped, "active_parameters": 3e5}
    figures["experts_per_token"] = experts[job.variant] * (1 - dropped)
    row = dict.fromkeys(plan.COLUMNS, "") | dict(zip(plan.KEY, job.key, strict=True)) | figures
    return {name: str(value) for name, value in row.items()}


@pytest.fixture
def league(tmp_path: Path) -> Any:
    return plan.League(data=tmp_path / "data", page=tmp_path / "routers.md", outputs=tmp_path / "outputs")


def played(league: Any, gap: float = 0.1, **losses: float) -> Any:
    """All lines of a league in which frozen lost to switch by `gap` before it."""
    known, rows = LOSS | losses, []
    for job in (job for part in plan.PARTS for job in league.jobs(part, STEPS)):
        level = known.get(job.variant, 1.6) - 0.3 * (job.steps / STEPS - 1.0)
        rows.append(line(job, 1.8 + gap * (job.variant == "frozen") if job.part == plan.POWER else level))
    return plan.Results(tuple(rows))


def test_only_what_is_missing_is_run_and_takes_time(league: Any) -> None:
    jobs = league.jobs(plan.POWER, STEPS)
    results = plan.Results(()).add(line(jobs[0], 1.8), league.csv)
    assert plan.Results.read(league.csv) == results and results.missing(jobs) == jobs[1:]
    assert league.csv.read_text().count("\n") == 2
    alone, both = (session.Session(league, 0.0, width).runner for width in (1, 2))
    before = alone.seconds_left()
    alone.results = both.results = played(league)
    measuring = alone.seconds_left()
    assert 0.0 < measuring == both.seconds_left() < before  # what is measured takes as long
    alone.results = both.results = plan.Results(alone.results.rows[:-1])
    assert alone.seconds_left() - measuring == pytest.approx(2 * (both.seconds_left() - measuring))
    with pytest.raises(session.OutOfTimeError):
        session.Session(league, until=0.0).play()


def test_each_run_has_a_name_and_a_command_of_its_own(league: Any) -> None:
    jobs = [job for part in plan.PARTS for job in league.jobs(part, STEPS)]
    assert len({job.name for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    limited = next(job for job in jobs if job.capacity_factor)
    assert limited.name == "table_switch_dropless_cap1.25_seed0_400"
    config = composed(limited.words)
    assert (config.model.capacity_factor, config.trainer.max_steps, config.seed) == (1.25, STEPS, 0)
    assert config.outputs == str(league.outputs)


def test_the_steps_are_doubled_once_where_too_small_a_difference_shows(league: Any) -> None:
    known = plan.power(played(league, gap=0.0), league)  # its difference is what the noise alone comes to
    resolved = planned(len(import_module("contest.words").HEADLINE), 5, known.deviation) or 0.0
    small, large = (played(league, gap=factor * resolved + known.difference) for factor in (0.9, 1.1))
    assert [plan.steps_of(results, league) for results in (small, large)] == [2 * STEPS, STEPS]
    assert plan.steps_of(small, replace(league, rehearsal=True)) == STEPS
    assert plan.steps_of(plan.Results(small.rows[1:]), league) is None


def test_experts_per_token_are_those_that_computed_in_the_last_tenth_of_steps() -> None:
    tags = [(f"moe/layer_{layer:02d}/kept/expert_{e:02d}", e) for layer in (0, 2) for e in (0, 1)]
    lines = [{"step": step} | {tag: kept + e for tag, e in tags} for step, kept in ((90, 99), (95, 10), (100, 20))]
    assert plan.computed_per_token(lines, after=90.0, tokens=62) == pytest.approx((21 + 41) / 2 / 62)


SENTENCES = {
    "In part: .* lower loss than `frozen` by 0.1000 nats .0.0.* by 0.2000.*; it is not resolved from `hash`": {},
    "Yes: .* has a lower loss than `frozen` by .* `hash` by 0.1500 .* `uniform` by 0.2": {"hash": 1.95},
    "No: .* a higher loss than `frozen` .*; it is not resolved": {"frozen": 1.7, "hash": 1.7, "uniform": 1.8},
}


@pytest.mark.parametrize("says", SENTENCES)
def test_the_first_sentence_answers_the_title(league: Any, says: str) -> None:
    lead = report.document(report.Standing(league, played(league, **SENTENCES[says]), {}, STEPS)).lead
    assert "(300,000 active parameters, 400 steps on Tiny Shakespeare) learned routing, `switch`," in lead
    assert re.match(says, lead), lead


def test_the_page_is_made_of_the_stored_results_alone(league: Any) -> None:
    verdicts = {"verdicts": {"PASS": ["a"] * 20, "LEAKS": ["own future, training"], "FAIL": []}, "gap": "-0.2 nats"}
    shares = {label: {"share": 0.5, "half": 0.01} for label in report.EXPLAIN}
    timed = {entry.variant: 0.1 if entry == plan.DENSE else 0.2 for entry in plan.ENTRIES}
    ratio = {name: dict.fromkeys(("median", "low", "high"), 10 * s) for name, s in timed.items()}
    times = {name: {"seconds": {"median": s}, "to_dense": ratio[name]} for name, s in timed.items()}
    stages = {"certificate": {"expert_choice_1.0": verdicts}, "explanation": {"hash": shares}}
    made = [row for row in played(league).rows if (row["variant"], row["part"], row["seed"]) != ("hash", "table", "3")]
    assert report.write(league, plan.Results(tuple(made)), stages | {"seconds": {"all": {"entries": times}}}) is None
    page = league.page.read_text()
    rows = {cells[1].strip("`"): cells for row in page.splitlines()[::-1] if len(cells := row.split(" | ")) > 8}
    assert rows["expert choice, factor 1"][0] == "| 1" and rows["sigmoid"][0] == "| 2"
    assert rows["threshold, 1 expert"][0] == "| not ranked" and page.count("| not ranked |") == 1
    assert "`hash` (4 seeds)" in page and "2 are missing" in page
    assert "20 PASS; LEAKS: own future, training (training rule less generation: -0.2 nats)" in page
    assert re.search(r"`expert choice, factor 1` \| 200.00 \| 2.00 \(2.00 to 2.00\) \| over 1.00", page)
    assert re.search(r"`uniform` \| 200.00 \| .* \| 0\.2\d \(", page)  # dense needs half the steps for its loss
    assert "`expert choice, factor 1`: it has the lowest loss of the routers with about one expert" in page
    assert sum((league.page.parent / one).is_file() for one in re.findall(r"\]\((\S+)\)", page)) == 2
    assert "before these have run: switch, frozen" in report.write(league, plan.Results(()), {})
