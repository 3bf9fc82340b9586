"""What a report states: who wins or loses, when it is resolved, and what it must not state."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import DENSE, DROPLESS, MODELS, ONE, config_of, record, rows, studied, words, write_run, write_sweep
from small_models import family

from switch_lm.reporting.answer import next_commands, tiles
from switch_lm.reporting.comparisons import compare, study
from switch_lm.reporting.records import find_sources, read_records
from switch_lm.reporting.tables import balance_table, comparison_table
from switch_lm.reporting.words import planned_words

AGAINST_DENSE = "`dense` of equal computation by the model's products: loss"
VERDICTS = [  # dense, dropless, and what follows
    ([1.50, 1.61, 1.70], [1.47, 1.58, 1.67], "against", "lower by 0.0300 nats, no spread"),
    # 0.03 -+ 4.30265 x 0.01 / sqrt(3): of two variants least squares is the paired t
    ([1.5, 1.5, 1.5], [1.48, 1.47, 1.46], "beats", "lower by 0.0300 nats (-0.0548 to -0.0052), resolved"),
    ([1.5, 1.6, 1.7], [1.52, 1.63, 1.74], "loses to", "higher by 0.0300 nats (0.0052 to 0.0548), resolved"),
    ([1.50, 1.61], [1.52, 1.63], "against", "higher by 0.0200 nats, no spread"),
    # 4.30265 x 0.0379 / sqrt(3) and 2.77645 x 0.0356 / sqrt(5)
    ([1.5] * 3, [1.46, 1.47, 1.53], "against", "lower by 0.0133 nats (-0.1074 to 0.0807), not resolved"),
    ([1.5] * 5, [1.46, 1.47, 1.53, 1.54, 1.49], "against", "lower by 0.0020 nats (-0.0462 to 0.0422), not resolved"),
    ([1.5, 1.5], [1.5, 1.5], "against", "equal, no spread"),
    ([1.5], [1.1], "against", "lower by 0.4000 nats, one seed"),
    ([1.5, 1.6], [1.4, 1.5, 9.0], "against", "lower by 0.1000 nats, no spread"),  # seed 2 is alone
]


@pytest.mark.parametrize(("dense", "dropless", "verb", "outcome"), VERDICTS, ids=lambda value: str(value)[:40])
def test_switch_wins_or_loses_where_the_interval_excludes_0_and_nowhere_else(
    dense: list[float], dropless: list[float], verb: str, outcome: str, tmp_path: Path
) -> None:
    top, text = words(studied(tmp_path, {"dense": dense, "dropless": dropless}))
    assert top == f"`Switch, dropless` {verb} {AGAINST_DENSE} {outcome}."
    assert ("Each variant has one seed: no difference is resolved." in text) is (len(dense) == 1)


def test_one_seed_is_stated_in_place_of_an_interval(tmp_path: Path) -> None:
    ((*_, difference, ends, verdict, _, _), *_) = rows(studied(tmp_path, {"dense": [1.5], "dropless": [1.4]}))
    assert (difference, ends, verdict) == ("-0.1000 (one seed)", "-", "one seed")


def test_without_dense_runs_the_first_planned_variant_is_the_control_and_nothing_is_said_about_dense(
    tmp_path: Path,
) -> None:
    top, text = words(
        studied(tmp_path, {"one": [None, 1.6, 1.5], "dropless": [1.4, 1.5, 1.42]})
    )  # the first job failed
    assert top.startswith(
        "`Switch, dropless` against `Switch, factor 1.0`, the first of what was varied: loss lower by "
    )
    assert top.endswith("; there is no dense run here, so nothing is said of Switch against dense.")
    assert "beats" not in text + top and "dense" not in text


def test_one_variant_alone_has_its_loss_in_the_lead(tmp_path: Path) -> None:
    top, text = words(studied(tmp_path, {"one": [1.4, 1.5]}))
    assert top.startswith(
        "The loss at the last step, of `Switch, factor 1.0`, is 1.4500 ± 0.6353; there is no dense run "
    )
    assert "Welch" not in text and "scatter" not in text


def test_too_few_runs_for_a_deviation_are_not_called_unlinked(tmp_path: Path) -> None:
    _, text = words(studied(tmp_path, {"dense": [1.5, 1.6], "dropless": [1.4, None]}))
    assert "Too few runs share seeds: no deviation is known, so no interval." in text and "Welch" not in text


def test_the_first_variant_with_a_result_is_the_control_where_the_first_planned_one_has_none(tmp_path: Path) -> None:
    top, _ = words(studied(tmp_path, {"one": [None, None], "1.25": [1.5, 1.6], "dropless": [1.4, 1.55]}))
    assert "`Switch, dropless` against `Switch, factor 1.25`, the first that finished: loss lower by " in top


def test_loose_runs_have_the_first_one_given_as_their_control_and_their_differences_are_named(tmp_path: Path) -> None:
    for number, model in enumerate([ONE, DENSE | {"d_model": 64}]):
        for seed in (0, 1):
            loss = 1.5 + 0.1 * seed + 0.01 * number * seed
            write_run(tmp_path / "runs" / f"{number}{seed}", config_of(seed, **model), loss)
    result = study(read_records(find_sources([tmp_path / "runs"])))
    (cohort,) = result.cohorts
    assert cohort.origin == "the first run given" and cohort.control.capacity_factor == 1.0
    purpose = "Runs that no sweep varied are taken to differ on purpose in `model.d_model`, `model.switch_every`."
    assert purpose in words(result)[1]
    assert [row[7].partition(" (")[0] for row in rows(result)] == ["d_model"]  # a dense one has no routing
    assert "on purpose" not in words(studied(tmp_path, {"dense": [1.5], "one": [1.4]}))[1]


def test_unknown_products_leave_no_empty_brackets(tmp_path: Path) -> None:
    top, _ = words(studied(tmp_path, {"dense": [1.5, 1.5, 1.5], "dropless": [1.48, 1.47, 1.46]}, computation={}))
    assert f"{AGAINST_DENSE} lower by" in top


def test_variants_that_share_no_seed_are_compared_one_way(tmp_path: Path) -> None:
    for seed, loss in enumerate([1.5, 1.52, 1.4, 1.42]):
        write_run(tmp_path / "runs" / f"{seed}", config_of(seed, **(DENSE if seed < 2 else DROPLESS)), loss)
    top, text = words(study(read_records(find_sources([tmp_path / "runs"]))))
    # Welch: -0.1 -+ 4.30265 x sqrt(2 x 0.01^2), with 2 degrees of freedom
    assert f"`Switch, dropless` beats {AGAINST_DENSE} lower by 0.1000 nats (-0.1608 to -0.0392), resolved" in top
    assert "Seeds do not link all variants: Welch's t compares them" in text and "scatter by" not in text


UNEQUAL = [
    ("dense", "1.25", "unequal computation", "+14.6%, +25.9%", "-0.1000"),
    ("dense", "top2", "unequal computation", "+85.4%, +91.6%", "-0.1000"),
    ("wide", "dropless", "equal parameters", "-79.8%, -76.7%", "-0.1000"),
]


@pytest.mark.parametrize(("control", "name", "kind", "work", "loss"), UNEQUAL)
def test_a_dense_run_of_unequal_computation_is_compared_and_nobody_wins(
    control: str, name: str, kind: str, work: str, loss: str, tmp_path: Path
) -> None:
    result = studied(tmp_path, {control: [1.5, 1.6], name: [1.4, 1.5]})
    top, _ = words(result)
    assert "no dense run here is a control of equal computation" in top and f"` of {kind}: loss lower by " in top
    assert "` beats" not in top and "loses" not in top
    assert [(*row[2:4], *row[5:]) for row in rows(result)] == [
        ("loss", loss, "no spread", "control", f"{kind} ({work})"),
    ]


def test_a_capacity_may_win_dropless_and_lose_at_its_own_capacity(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.6, 1.7], "one": [1.48, 1.58, 1.679]})  # 0.05 more there
    assert words(result)[0].startswith("`Switch, factor 1.0` beats `dense`")
    ((*_, difference, _, verdict, _, _),) = [row for row in rows(result) if row[2] == "loss at capacity"]
    assert difference.startswith("0.0297 ± ") and verdict == "resolved"


def test_more_than_two_variants_with_one_control_are_counted_in_the_lead(tmp_path: Path) -> None:
    losses = {"dense": [1.5, 1.6], "dropless": [1.4, 1.501], "one": [1.6, 1.7], "half": [1.5, 1.601]}
    result = studied(tmp_path, losses)
    top, _ = words(result)
    assert top.startswith(f"`Switch, dropless, every block` beats {AGAINST_DENSE} lower by 0.0995 nats (")
    assert top.endswith("), resolved (of 3 such comparisons, 1 won, 1 lost, 1 unresolved).")
    work = {row[7].partition(" (")[2].partition(",")[0] for row in rows(result) if row[6] == "control"}
    assert work == {"+0.2%", "+0.4%"}


def test_two_controls_have_a_sentence_each_and_the_measure_is_named() -> None:
    work = {"dense": (137.0, 9.0), "wider": (143.0, 9.0), "one": (138.0, 15.0)}
    models = {"dense": DENSE, "wider": DENSE | {"d_ff": 600}, "one": ONE}
    losses = {"dense": [1.5, 1.6, 1.7], "wider": [1.45, 1.55, 1.651], "one": [1.47, 1.57, 1.67]}
    runs = []
    for name, own in losses.items():
        computation = dict(zip(("training", "optimizer"), work[name], strict=True))
        runs += [record(config_of(seed, **models[name]), y, computation=computation) for seed, y in enumerate(own)]
    result = study(runs)
    top, _ = words(result)
    one = "`Switch, factor 1.0`"
    assert top.startswith(f"{one} beats {AGAINST_DENSE} lower by 0.0300 nats (")
    other = "`dense, d_ff 600` of equal computation by all products"
    assert f", resolved; {one} loses to {other}: loss higher by 0.0197 nats (" in top
    assert "control (3, by the multivariate t)" in comparison_table(compare(result)).note
    control = [(*row[:2], row[-1]) for row in rows(result) if row[6] == "control"]
    assert control[:2] == [
        ("Switch, factor 1.0", "dense", "equal in the model's products (+0.7%, +4.8%)"),
        ("Switch, factor 1.0", "dense, d_ff 600", "equal in all products (-3.5%, +0.7%)"),
    ]
    assert control[2][:2] == ("dense, d_ff 600", "dense") and control[2][2].startswith("d_ff (")


def test_runs_on_two_machines_are_compared_in_loss_and_not_on_the_clock(tmp_path: Path) -> None:
    result = studied(tmp_path, {"dense": [1.5, 1.5], "dropless": [1.4, 1.5]})
    assert [row[2] for row in rows(result) if row[2].startswith("time")] == ["time ratio to 1.5"]
    for run in result.variants[0].runs:
        dict.__setitem__(run.result, "hardware.name", "another machine")  # type: ignore[index]
    top, text = words(result)
    assert "in 2 ways: compare no seconds." in text
    assert top.startswith("`Switch, dropless` against") and top.endswith("), not resolved.")
    assert [row[3:6] for row in rows(result) if row[2] == "time to a loss"] == [("-", "-", "not compared")]


@pytest.mark.parametrize("key", ["corpus_sha256", "validation_sha256"])
def test_losses_of_two_texts_are_not_compared(key: str, tmp_path: Path) -> None:
    one, another = ({key: value} for value in ("0123456789abcdef", "f" * 64))
    result = studied(tmp_path, {"dense": [1.5, 1.5], "dropless": [1.4, 1.4]}, **one)  # type: ignore[arg-type]
    assert "texts" not in words(result)[1]
    other = studied(tmp_path / "other", {"dense": [1.5, 1.5]}, **another)  # type: ignore[arg-type]
    both = study([*result.records, *other.records])
    assert "validated on different texts: their losses cannot be compared" in words(both)[1]
    assert {row[:2] for row in rows(both)} == {("Switch, text 012345", "dense, text 012345")}


def test_neighbouring_capacities_are_compared_in_cost_and_loss(tmp_path: Path) -> None:
    losses = {"dense": [1.5, 1.6], "one": [1.5, 1.6], "2.0": [1.49, 1.59], "dropless": [1.48, 1.58]}
    result = studied(tmp_path, losses)
    label = "Switch, factor "
    found = [(row[0].removeprefix(label), row[1].removeprefix(label), *row[2:4], *row[6:]) for row in rows(result)]
    assert [row for row in found if "capacity factor" in row[-1]] == [
        ("2.0", "1.0", "loss", "-0.0100", "ladder", "capacity factor (+56.4%, +46.7%)"),
        ("Switch, dropless", "2.0", "loss", "-0.0100", "ladder", "capacity factor (-36.1%, -31.8%)"),
        ("Switch, dropless", "1.0", "loss", "-0.0200", "rest", "capacity factor (+0.0%, +0.0%)"),
        ("2.0", "1.0", "loss at capacity", "-0.0600", "rest", "capacity factor (+56.4%, +46.7%)"),
        ("Switch, dropless", "1.0", "loss at capacity", "-0.0700", "rest", "capacity factor (+0.0%, +0.0%)"),
    ]
    assert "No run has `router.random_drop_rate`" in words(result)[1]


def test_a_capacity_is_compared_with_drops_at_random(tmp_path: Path) -> None:
    losses = {
        "dense": [1.5, 1.6],
        "1.25": [1.45, 1.55],
        "one": [1.6, 1.7],
        "dropless": [1.5, 1.6],
        "random": [1.48, 1.58],
    }
    result = studied(tmp_path, losses)
    random, found = "Switch, dropless, random drops 0.07", {row[:2]: row[3] for row in rows(result) if row[2] == "loss"}
    assert found[random, "Switch, dropless"].startswith("-0.0200")
    assert found["Switch, factor 1.25", random].startswith("-0.0300")  # drops 7.5%
    assert "random_drop_rate" not in words(result)[1]


def test_learned_routers_are_compared_with_one_that_draws_experts_at_random() -> None:
    losses = (DROPLESS, [1.9, 2.0, 2.1]), (DROPLESS, [1.5, 1.6, 1.71]), (DENSE, [1.6, 1.7, 1.8])
    runs = [record(config_of(seed, **model), y) for model, own in losses for seed, y in enumerate(own)]
    for run in runs[:3]:
        run.config.update({"router.name": "uniform"})  # type: ignore[attr-defined]
    result = study(runs)
    ((ours, theirs, _, difference, _, verdict, family, kind),) = [r for r in rows(result) if "chance" in r[7]]
    assert (ours, theirs, family, kind.partition(" (")[0]) == ("Switch", "uniform", "rest", "against chance")
    assert difference.startswith("-0.3967 ± ") and verdict == "resolved"
    assert "`uniform` draws its experts at random" in words(result)[1]


def test_the_note_states_the_families_and_how_many_comparisons_each_has(tmp_path: Path) -> None:
    # Control: two. Ladder: the step between them. Rest: loss at capacity, two times, the step at capacity.
    losses = {"dense": [1.5, 1.49, 1.485], "one": [1.4, 1.395, 1.38], "dropless": [1.4, 1.39, 1.36]}
    note = comparison_table(compare(studied(tmp_path, losses))).note
    families = "control (2, by the multivariate t), ladder (1, by Holm), rest (4, by Holm)."
    assert f"7 comparisons with an interval, in 3 families fixed beforehand: {families}" in note
    assert "Holm's intervals decide; together they do not hold in 95%." in note


def test_comparisons_without_an_interval_are_not_counted(tmp_path: Path) -> None:
    losses: dict[str, list[float | None]] = {
        "dense": [1.5, 1.6, 1.7], "one": [1.4, 1.51, 1.6], "2.0": [1.4], "dropless": [1.4]
    }  # fmt: skip
    losses |= {name: [*own, None, None] for name, own in losses.items() if len(own) == 1}
    result = studied(tmp_path, losses)
    assert "control (1, by the multivariate t)" in comparison_table(compare(result)).note
    single = comparison_table(compare(studied(tmp_path / "b", {"dense": [1.5], "dropless": [1.4]}))).note
    assert "famil" not in single.partition("Resolved:")[0]


SPREADS: list[tuple[dict[str, list[float | None]], bool]] = [
    ({"dense": [1.5, 1.61, 1.7], "one": [1.4, 1.5, 1.6], "dropless": [1.4, 1.51, 1.63]}, True),
    ({"dense": [1.5, 1.61, 1.7], "one": [1.4, 1.5, 1.6]}, False),  # two have one difference by seed
    ({"dense": [1.5, 1.61, 1.7, 1.6], "one": [1.4, 1.5, 1.6, 1.5], "dropless": [1.4, 1.51, 1.63, 1.5]}, False),
    ({"dense": [1.5, 1.61, 1.7, 1.6], "one": [1.4, 1.5, 1.6, None], "dropless": [1.4, 1.51, 1.63, 1.5]}, True),
    ({"dense": [1.5, 1.61, 1.7], "one": [1.4, 1.5, 1.6], "dropless": [1.4, None, None]}, False),
    ({"dense": [1.5], "one": [1.4], "dropless": [1.4]}, False),  # no interval
]


@pytest.mark.parametrize(
    ("losses", "assumed"), SPREADS, ids=["3 seeds", "2 variants", "4 seeds", "3 of 4", "1 of 3", "1 seed"]
)
def test_equal_spreads_are_stated_once_where_they_are_assumed(
    losses: dict[str, list[float | None]], assumed: bool, tmp_path: Path
) -> None:
    result = studied(tmp_path, losses)
    alike = "With fewer than 4 seeds unequal spreads cannot be detected: all variants are assumed to scatter alike."
    assert words(result)[1].count(alike) == assumed
    assert ("at most, if all variants scatter alike." in comparison_table(compare(result)).note) is assumed


def test_a_loss_that_was_not_measured_dropless_is_stated(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"a": ONE | {"eval_capacity_factor": 1.2}}, {"a": [1.5]})
    result = study(read_records(find_sources([sweep])))
    assert "validates at factor 1.2: its validation loss includes drops." in words(result)[1]


PLANS = [  # seeds, variants, and what is printed of such a plan
    # (4.30265 + 1.06066) x 0.010 x sqrt(2 / 3): t of 95% and of 80%, 2 degrees of freedom
    ([0, 1, 2], ["a", "b"], "a difference of 0.044 nats from one control, in 80% of such sweeps (2 variants, 3 seeds, "
     "a deviation of 0.010 assumed)"),
    ([0], ["a", "b"], "no difference, with one seed; several: seed=0,1,2,3,4"),
    ([0, 1], ["a"], ""),
    ([], [], ""),  # a search
]  # fmt: skip


@pytest.mark.parametrize(("seeds", "variants", "printed"), PLANS, ids=lambda value: str(value)[:12])
def test_before_a_sweep_its_resolvable_difference_is_printed(
    seeds: list[int], variants: list[str], printed: str
) -> None:
    jobs = [{"seed": s, "variant": v, "trainer.threads": 1 + s} for s in seeds for v in variants]
    assert planned_words(jobs) == printed


def test_the_cheapest_is_the_best_of_those_that_cost_the_same_and_the_best_is_set_beside_the_next() -> None:
    work = {"one": 100.0, "dropless": 101.0, "2.0": 150.0}  # 101 is within 2% of 100, and its loss is lower
    losses = {"one": [1.5, 1.6, 1.7], "dropless": [1.45, 1.55, 1.65], "2.0": [1.42, 1.53, 1.61]}
    runs = [
        record(config_of(seed, **MODELS[name]), loss, computation={"training": work[name] * 1e12})
        for name, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    best, cheapest, dropped, seeds = tiles(study(runs)).items
    start = "`Switch, factor 2.0` has the lowest loss; `Switch, dropless` follows, 0.0300 ± "
    assert best.note.startswith(start) and best.note.endswith(" higher (not corrected)")
    words_of_cheapest = "of 2 variants within 2% of the least training computation, `Switch, dropless` has the lowest"
    assert (cheapest.value, cheapest.note) == ("101.0 TFLOP", f"{words_of_cheapest} loss, 0.0300 above the best")
    assert seeds.note.startswith("can detect a ") and "from `" in seeds.note and dropped.value == "10.0%"


def test_where_experts_choose_nothing_is_dropped_and_alpha_weights_nothing() -> None:
    chooses = replace(config_of(**ONE), router=family("expert_choice"))
    result = study([record(chooses, dropped_whole_run=0.0), record(config_of(**ONE))])
    rows_of = {row[0].text: [cell.text for cell in row] for row in balance_table(result).rows}
    assert rows_of["expert_choice"][2:5] == ["-", "-", "-"] and rows_of["Switch"][2:5] == ["0.01", "-", "10.0%"]
    assert tiles(study([record(chooses)])).items[2].value == "-"


def test_more_seeds_are_of_all_jobs_and_controls_keep_what_is_not_routing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"one": ONE, "1.25": {}}, {"one": [1.5, 1.6, 1.7], "1.25": [1.5, 1.61, 1.69]})
    plan = json.loads((sweep / "sweep.json").read_text())
    plan["command"] = "python -m switch_lm.train seed=2 variant=one alpha=0.1,0.2 trainer.max_steps=100 outputs=there"
    plan |= {"varied": ["seed", "variant", "alpha", "trainer.max_steps"]}
    (sweep / "sweep.json").write_text(json.dumps(plan))
    result = study(read_records(find_sources([sweep])))
    first, *more = next_commands(result, compare(result))
    end = "seed=2 trainer.max_steps=100 outputs=there variant=dense,uniform  # no experts and a random router"
    assert first.endswith(f"switch_lm.train {end}")
    every = "alpha=0.1,0.2 trainer.max_steps=100 outputs=there seed=0,1,2,3,4,5 variant=1.25,one"
    assert more[0].endswith(f"switch_lm.train {every}  # more seeds resolve more")
