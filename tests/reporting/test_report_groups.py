"""Which runs repeat each other, what variants are called, and which dense one is a fair control of which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_runs import DENSE, DROPLESS, ONE, config_of, record

from switch_lm.config.schema import DataConfig, HealthConfig, LoggerConfig
from switch_lm.optim.options import MuonOptions
from switch_lm.reporting.comparisons import compare, study
from switch_lm.reporting.controls import (
    is_control,
    matches_computation,
    matches_parameters,
    matches_total,
    more_in_all,
    more_training,
)
from switch_lm.reporting.frontier import pareto
from switch_lm.reporting.records import Record
from switch_lm.reporting.variants import ALPHA, CAPACITY, EXPERTS, Variant, group, ladders, pairs
from switch_lm.routers.options import BalanceOptions


def variants(*models: dict[str, Any]) -> list[Variant]:
    return list(group([record(config_of(**model)) for model in models]))


def one(**model: Any) -> Variant:
    return variants(model)[0]


def test_runs_that_differ_in_seed_name_and_place_are_one_variant() -> None:
    configs = [config_of(0), config_of(1), config_of(2, name="x")]
    configs += [
        replace(
            config_of(3), outputs="elsewhere", resume="auto", logger=LoggerConfig(progress="none"), router_alarm="error"
        )
    ]
    configs += [replace(config_of(5), trainer=replace(config_of().trainer, max_time="01:00:00", threads=1))]
    configs += [replace(config_of(4), data=DataConfig(dir="there"), health=HealthConfig(every=0))]
    (variant,) = group([record(config, 1.5 + 0.1 * config.seed) for config in configs])
    assert variant.by_seed("val_loss") == pytest.approx({0: 1.5, 1: 1.6, 2: 1.7, 3: 1.8, 4: 1.9, 5: 2.0})


def test_a_repeated_seed_is_no_further_sample() -> None:
    (variant,) = group([record(config_of(0), 1.5), record(config_of(0), 1.7), record(config_of(1), 1.0)])
    assert variant.by_seed("val_loss") == pytest.approx({0: 1.6, 1: 1.0})


def test_a_run_of_unknown_seed_is_a_variant_of_its_own_that_is_compared_with_none() -> None:
    configs = [config_of(**model) for model in (DENSE, ONE, DROPLESS, ONE, ONE)]
    runs = [replace(record(config, 1.5, seed=None), name=f"run{i}") for i, config in enumerate(configs)]
    for run in runs[3:]:
        run.config.pop("seed")  # type: ignore[attr-defined]
    result = group(runs)
    assert [(v.label, v.by_seed("val_loss")) for v in result] == [
        ("dense", {0: 1.5}),
        ("Switch, dropless", {0: 1.5}),
        ("Switch, factor 1.0", {0: 1.5}),
        ("Switch, factor 1.0, seed unknown (run3)", {None: 1.5}),
        ("Switch, factor 1.0, seed unknown (run4)", {None: 1.5}),
    ]
    pairs = {(d.ours.label, d.theirs.label) for d in compare(study(runs))}
    assert pairs and not any("unknown" in label for pair in pairs for label in pair)


def test_a_dense_model_is_the_same_whatever_its_routing_keys_are() -> None:
    keys: list[dict[str, Any]] = [{}, {"num_experts": 2}, {"capacity_factor": None}, {"alpha": 0.5}, {"top_k": 2}]
    assert len(variants(*(DENSE | changes for changes in keys))) == 1
    assert len(variants(*keys)) == len(keys)
    assert one(num_layers=2, switch_every=3).dense  # none of its blocks is the third


@pytest.mark.parametrize(
    ("layers", "same"),
    [
        ([], {"switch_every": 0}),
        ([1, 3], {"switch_every": 2}),
        ([0, 1, 2, 3], {"switch_every": 1}),
        ([2], {"switch_every": 3}),
    ],
)
@pytest.mark.parametrize("every", [0, 1])
def test_the_same_layers_are_one_variant_however_they_are_stated(
    layers: list[int], same: dict[str, int], every: int
) -> None:
    (variant,) = variants({"switch_layers": layers, "switch_every": every}, same)
    assert variant.dense == (layers == [])
    assert matches_parameters(variant, one(**WIDE)) == (same == {"switch_every": 1})


def test_what_was_computed_on_tells_variants_apart_and_what_was_asked_for_does_not() -> None:
    asked = config_of(1)
    asked.trainer.precision = "fp32"
    assert len(group([record(config_of()), record(asked)])) == 1
    on_gpu = record(asked, hardware={"device": "cuda", "precision": "fp32"})
    result = group([record(config_of()), on_gpu, record(config_of(), corpus_sha256="f" * 64)])
    assert {variant.label for variant in result} == {
        "text 012345, device cpu", "text 012345, device cuda", "text ffffff, device cpu",
    }  # fmt: skip


def test_a_run_without_a_loss_is_in_no_variant() -> None:
    assert group([Record("a", "failed"), record(config_of(), float("nan")), Record("b", "done")]) == ()


WIDE = DENSE | {"d_ff": 4096}
LABELS: list[tuple[list[dict[str, Any]], list[str]]] = [
    ([{}], ["Switch, factor 1.25"]),
    ([DENSE], ["dense"]),
    ([DENSE, WIDE], ["dense, d_ff 512", "dense, d_ff 4096"]),
    ([DENSE, WIDE, {}], ["dense", "dense, d_ff 4096", "Switch, factor 1.25"]),
    ([ONE, {}, DROPLESS], ["Switch, dropless", "Switch, factor 1.25", "Switch, factor 1.0"]),
    ([{}, {"top_k": 2, "capacity_factor": 2.5}], ["top-2, factor 2.5", "Switch, factor 1.25"]),
    ([{"alpha": 0.0}, {"alpha": 0.01}], ["alpha 0.0", "alpha 0.01"]),
    ([DENSE, {"alpha": 1e-4}, {"alpha": 0.01}], ["dense", "Switch, alpha 0.0001", "Switch, alpha 0.01"]),
    ([{"num_experts": 1}, {"num_experts": 16}], ["1 expert", "16 experts"]),
    ([DROPLESS, {}, DROPLESS | {"random_drop_rate": 0.07}],
     ["Switch, dropless", "Switch, dropless, random drops 0.07", "Switch, factor 1.25"]),
    ([{"overflow": "drop"}, {"overflow": "reroute"}], ["overflow drop", "overflow reroute"]),
    ([DENSE, DENSE | {"dropout": 0.1}], ["dense, dropout 0.0", "dense, dropout 0.1"]),
    ([{}, {"switch_every": 2}], ["every 2 blocks", "every block"]),
    ([{}, {"switch_layers": [0, 3]}], ["every block", "switch_layers [0, 3]"]),
    ([{"switch_every": 0}, {"switch_every": 0, "switch_layers": [0, 3]}], ["dense", "Switch, factor 1.25"]),
    ([{}, {"balance": BalanceOptions(name="sign")}], ["balance loss", "sign balance"]),
    ([{"balance": BalanceOptions(name="quantile")}, {"top_k": 2}],
     ["top-2", "Switch, quantile balance"]),  # of several families the usual balance is not stated
    ([DROPLESS, DROPLESS | {"top_k": 2, "jitter": 0.0}],
     ["top-2, jitter 0.0", "Switch, jitter 0.01"]),  # no word of what only topk has
]  # fmt: skip


@pytest.mark.parametrize(("models", "labels"), LABELS, ids=lambda value: str(value)[:60])
def test_a_label_says_what_variants_differ_in(models: list[dict[str, Any]], labels: list[str]) -> None:
    assert [variant.label for variant in variants(*models)] == labels


MATCHES: list[tuple[dict[str, Any], bool]] = [
    (ONE, True),
    (DROPLESS, True),
    (ONE | {"num_experts": 64}, True),
    (DROPLESS | {"switch_every": 2}, True),
    (DROPLESS | {"alpha": 0.0}, True),
    ({"capacity_factor": 1.25}, False),
    ({"capacity_factor": 0.5}, False),
    (DROPLESS | {"top_k": 2}, False),
    (DROPLESS | {"shared_expert": True}, False),
    (DROPLESS | {"d_ff": 256}, False),
    (DROPLESS | {"d_model": 64}, False),
    (DROPLESS | {"dropout": 0.1}, False),
    (ONE | {"capacity_group": "sequence", "num_experts": 100}, False),  # 128 / 100 rounded up: 2 places, not 1.28
]


@pytest.mark.parametrize(("model", "matches"), MATCHES, ids=str)
def test_dense_matches_in_computation_at_factor_one_or_dropless_alone(model: dict[str, Any], matches: bool) -> None:
    sparse, dense = one(**model), one(**DENSE)
    assert matches_computation(sparse, dense) is matches
    assert not matches_computation(dense, sparse) and not matches_computation(dense, dense)


def test_a_dense_run_of_another_training_is_no_control() -> None:
    dense = config_of(**DENSE)
    other = replace(dense, optim=MuonOptions(lr=1.0))
    (control,), (stranger,) = group([record(dense)]), group([record(other)])
    assert is_control(one(**ONE), control) and not is_control(one(**ONE), stranger)


def test_dense_matches_in_parameters_when_it_is_as_wide_as_all_experts() -> None:
    assert matches_parameters(one(), one(**WIDE))
    assert not matches_parameters(one(), one(**DENSE))
    assert not matches_parameters(one(num_experts=4), one(**WIDE))
    assert not matches_parameters(one(switch_every=2), one(**WIDE))


def test_the_difference_in_computation_is_the_routers_at_factor_one() -> None:
    router, dense_work = 4 * 2 * 128 * 8, 4 * (2 * 4 * 128**2 + 4 * 128 * 128 + 4 * 128 * 512) + 2 * 128 * 65
    assert more_training(one(**ONE), one(**DENSE)) == pytest.approx(router / dense_work)
    places = 4 * 4 * 128 * 512 * 0.25
    assert more_training(one(), one(**DENSE)) == pytest.approx((router + places) / dense_work)


def test_dense_matches_in_all_products_within_2_percent_of_those_with_the_optimizer() -> None:
    def of(model: dict[str, Any], training: float, optimizer: float) -> Variant:
        return group([record(config_of(**model), computation={"training": training, "optimizer": optimizer})])[0]

    sparse, near = of(ONE, 100.0, 49.0), of(DENSE | {"d_ff": 600}, 137.0, 10.0)
    assert matches_total(sparse, near) and not matches_computation(sparse, near)
    assert more_training(sparse, near) == pytest.approx(100 / 137 - 1)
    assert more_in_all(sparse, near) == pytest.approx(149 / 147 - 1)
    assert not matches_total(sparse, of(DENSE | {"d_ff": 640}, 143.9, 10.0))
    assert not matches_total(sparse, of(DENSE | {"dropout": 0.1}, 140.0, 10.0))
    assert not matches_total(sparse, group([record(config_of(**DENSE), computation={})])[0])


def test_a_ladder_holds_all_else_equal_and_no_limit_is_its_top() -> None:
    result = variants({"capacity_factor": 2.0}, DROPLESS, ONE, ONE | {"num_experts": 4}, DENSE, ONE | {"alpha": 0.1})
    (capacity,) = ladders(result, CAPACITY)
    assert [rung.shown(CAPACITY) for rung in capacity] == ["1.0", "2.0", "dropless"]
    assert [(a.capacity_factor, b.capacity_factor) for a, b in pairs(capacity)] == [(1, 2), (2, None), (1, None)]
    assert [[v.config["alpha"] for v in ladder] for ladder in ladders(result, ALPHA)] == [[0.01, 0.1]]
    assert [[v.level(EXPERTS) for v in ladder] for ladder in ladders(result, EXPERTS)] == [[4, 8]]


def test_a_point_is_on_the_front_unless_another_is_as_low_in_both_and_lower_in_one() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (3.0, 2.0), (4.0, 1.0), (4.0, 1.0)]
    assert pareto(points) == (True, True, False, False, True, True)
    assert pareto([]) == ()
