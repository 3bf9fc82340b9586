"""Differences between variants over seeds: one pool, its exceptions, and families of comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from switch_lm.stats.contrasts import Pool
from switch_lm.stats.corrections import critical, holm, planned
from switch_lm.stats.intervals import Estimate, estimate, t_quantile

A, B, C = {0: 1.0, 1: 2.0, 2: 3.5}, {0: 1.2, 1: 2.1, 2: 3.9}, {0: 1.1, 1: 2.4, 2: 3.3}
Runs = dict[str, dict[int, float]]


def drawn(spreads: dict[str, float], *, seeds: int, seed: int = 0) -> Runs:
    """A value for each variant and seed, with a common effect of each seed."""
    draw = np.random.default_rng(seed)
    common = 3.0 * draw.normal(size=seeds)
    return {
        name: dict(enumerate((common + spread * draw.normal(size=seeds)).tolist())) for name, spread in spreads.items()
    }


def test_two_variants_with_the_same_seeds_are_compared_as_pairs() -> None:
    paired = estimate([A[seed] - B[seed] for seed in A])
    result = Pool({"a": A, "b": B}).difference(("a", "b"))
    assert paired is not None and paired.error is not None
    assert (result.count, result.freedom) == (3, paired.freedom)
    assert result.mean == pytest.approx(paired.mean) and result.error == pytest.approx(paired.error)


def test_three_variants_have_one_deviation_with_all_its_degrees_of_freedom() -> None:
    values = np.array([[*own.values()] for own in (A, B, C)])
    rest = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    deviation = math.sqrt(np.square(rest).sum() / 4)  # (3 - 1) (3 - 1) degrees of freedom
    result = Pool({"a": A, "b": B, "c": C}).difference(("b", "c"))
    assert result.freedom == 4 and result.error == pytest.approx(deviation * math.sqrt(2 / 3))


def test_a_failed_seed_leaves_no_variant_out_and_does_not_shift_the_others() -> None:
    values: Runs = {"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {0: 1.1, 1: 2.1, 2: 9.1}, "c": {0: 1.3, 1: 2.3}}
    pool = Pool(values)
    assert pool.difference(("c", "a")).mean == pytest.approx(0.3)  # their means differ by 2.2, for want of seed 2
    values["b"][1] += 0.01
    result = Pool(values).difference(("c", "a"))
    assert result.error is not None and (result.freedom, result.count) == (3, 2)


@pytest.mark.parametrize(
    "values",
    [
        {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.1, 1: 2.1, 2: 3.1}},  # all differences are equal
        {"a": {0: 1.0}, "b": {0: 1.3}, "c": {0: 1.7}},  # one seed
        {"a": A, "b": {0: 1.2}, "c": C},  # one seed of a variant
    ],
)
def test_no_interval_where_no_spread_is_known(values: Runs) -> None:
    pool = Pool(values)
    difference, (compared,) = pool.difference(("a", "b")), pool.family([("a", "b")])
    assert difference.mean < 0.0 and difference.half() is None
    assert compared.interval is None and not compared.resolved
    assert pool.detectable([("a", "b")]) is None


def test_variants_that_no_seed_links_are_compared_by_welch() -> None:
    ours, theirs = {0: 1.0, 1: 1.1, 2: 0.9}, {3: 2.0, 4: 3.0, 5: 1.0}
    linked = Pool({"a": ours, "b": theirs, "c": {1: 1.1, 2: 1.0, 3: 2.0, 4: 2.9}})
    assert not linked.one_way
    pool = Pool({"a": ours, "b": theirs})
    result = pool.difference(("a", "b"))
    assert pool.one_way and result.mean == pytest.approx(-1.0)
    assert result.p_value == pytest.approx(
        stats.ttest_ind([*ours.values()], [*theirs.values()], equal_var=False).pvalue
    )
    (compared,) = pool.family([("a", "b")])
    assert compared.interval == pytest.approx(result.interval())


def test_a_variant_of_many_times_the_others_spread_has_its_own_and_is_left_out_of_theirs() -> None:
    spreads = {"control": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "wild": 30.0}
    values = drawn(spreads, seeds=5, seed=4)
    pool, without = Pool(values), Pool({name: own for name, own in values.items() if name != "wild"})
    assert list(pool.left_out) == list(pool.wider) == ["wild"] and pool.left_out["wild"].ratio > 10
    pair, wild = ("b", "control"), pool.difference(("wild", "control"))
    assert pool.difference(pair) == without.difference(pair)
    assert wild.freedom == pytest.approx(4, abs=0.2) and (wild.error or 0.0) > 5.0  # its own five seeds
    others, alone = without.family([pair]), pool.family([("wild", "control")])
    assert others[0].interval == pytest.approx(pool.family([pair])[0].interval)
    assert alone[0].interval == pytest.approx(wild.interval())


def test_a_variant_of_a_clearly_wider_spread_has_its_own_though_it_counts_for_the_others() -> None:
    spreads = dict.fromkeys("abcdef", 1.0) | {"wide": 2.5}
    values = next(
        values
        for values in (drawn(spreads, seeds=5, seed=seed) for seed in range(100))
        if list((pool := Pool(values)).wider) == ["wide"] and not pool.left_out
    )
    pool = Pool(values)
    assert pool.pooled(("a", "b")) and not pool.pooled(("wide", "b"))
    assert pool.least_squares.freedom == 24  # 6 x 4
    wide, common = pool.difference(("wide", "a")), pool.difference(("b", "a"))
    own = pool.wider["wide"].deviation
    assert wide.error == pytest.approx(math.sqrt((own**2 + pool.least_squares.deviation**2) / 5))
    assert wide.freedom is not None and 4 < wide.freedom < 24 and common.freedom == 24


def equal_correlation(size: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1.0 if i == j else 0.5 for j in range(size)) for i in range(size))


@pytest.mark.parametrize(
    ("others", "freedom", "value"), [(5, 20, 2.73468), (5, 10, 2.99029), (11, 44, 2.86235), (1, 7, 2.36462)]
)
def test_the_critical_value_of_several_against_a_control_is_that_of_dunnett(
    others: int, freedom: int, value: float
) -> None:
    """By Dunnett's double integral on a grid of 801 x 1,201 points; of a single one it is Student's t."""
    assert critical(equal_correlation(others), freedom) == pytest.approx(value, abs=2e-3)


def test_the_critical_value_of_equal_comparisons_is_that_of_one_and_depends_on_nothing_random() -> None:
    equal = ((1.0, 1.0), (1.0, 1.0))  # singular
    assert critical(equal, 9) == pytest.approx(t_quantile(9), abs=1e-3)
    critical.cache_clear()
    again = critical(equal_correlation(5), 20)
    critical.cache_clear()
    assert again == critical(equal_correlation(5), 20)


def test_a_family_is_wider_than_each_alone_by_dunnetts_factor_and_narrower_than_bonferroni() -> None:
    values = drawn(dict.fromkeys("abcdef", 1.0), seeds=5, seed=5)
    pool = Pool(values)
    assert not pool.wider
    for compared in pool.family([(name, "a") for name in "bcdef"]):
        single, bonferroni = compared.estimate.half(), compared.estimate.half(5)
        assert compared.interval is not None and single is not None and bonferroni is not None
        half = (compared.interval[1] - compared.interval[0]) / 2
        assert half / single == pytest.approx(2.73468 / t_quantile(20), abs=2e-3) and half < bonferroni


def test_holm_decides_in_order_of_probability_and_stops_at_the_first_that_fails() -> None:
    def with_t(t: float) -> Estimate:
        return Estimate(t, 11, error=1.0, freedom=10)

    # p = 0.0004, 0.019, 0.03, 0.5 against 0.05 / 4, / 3, / 2, / 1: the second fails, so the third is not looked at
    family = [with_t(t) for t in (-2.52, 5.2, 2.8, 0.7)]
    result = holm([*family, Estimate(9.0, 1)])
    assert [compared.resolved for compared in result] == [False, True, False, False, False]
    assert [compared.interval for compared in result[:4]] == [
        family[0].interval(3), family[1].interval(4), family[2].interval(3), family[3].interval(3)
    ]  # fmt: skip
    assert result[4].interval is None  # has none of its own, and does not count


def test_the_detectable_difference_is_the_corrected_t_and_that_of_80_percent_times_the_error() -> None:
    assert planned(6, 3) == pytest.approx((2.99029 + 0.87906) * 0.010 * math.sqrt(2 / 3), abs=1e-5)
    assert planned(6, 1) is None and planned(1, 5) is None
    pool = Pool(drawn(dict.fromkeys("abcdef", 1.0), seeds=3, seed=1))
    assert not pool.wider
    pairs = [(name, "a") for name in "bcdef"]
    deviation = pool.least_squares.deviation
    assert pool.detectable(pairs) == pytest.approx((2.99029 + 0.87906) * deviation * math.sqrt(2 / 3), rel=1e-3)


def test_a_failed_seed_of_two_variants_leaves_the_seeds_that_both_have() -> None:
    result = Pool({"a": {0: 1.48}, "b": {0: 1.5, 1: 1.6}}).difference(("a", "b"))
    assert result.mean == pytest.approx(-0.02) and result.half() is None  # their means differ by 0.07


def test_an_error_of_unequal_spreads_weighs_each_run() -> None:
    """One variant has two seeds of five: by hand, the squared weights of its difference from another one."""
    spreads = dict.fromkeys("abcdef", 1.0) | {"wild": 100.0}
    values = drawn(spreads, seeds=5, seed=5)
    values["wild"] = {0: values["wild"][0], 1: -values["wild"][1]}
    pool = Pool(values)
    assert list(pool.wider) == ["wild"]
    # mean of its two seeds, less that of the other's five, less the seeds' effects, which six variants have estimated
    result, own, common = pool.difference(("wild", "a")), pool.wider["wild"], pool.least_squares.deviation
    of_others = 1 / 5 + (1 / 2 - 1 / 5) / 6
    assert result.error == pytest.approx(math.sqrt(own.deviation**2 / 2 + common**2 * of_others), rel=0.01)
    assert own.freedom == 1 and result.freedom == pytest.approx(1, abs=0.01)
