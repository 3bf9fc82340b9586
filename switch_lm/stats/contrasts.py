"""Differences between variants that ran with the same seeds, and what holds of a whole family of them at once."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import variance
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from switch_lm.stats.intervals import CONFIDENCE, POWER, ROUNDING, Estimate, estimate, t_quantile, welch

LEFT_OUT = 3.0  # times the others' spread: such a variant is left out of the pool
OWN_SPREAD = 1.7  # times: it is compared by its own seeds
ASSUMED = 0.010  # nats; the deviation of a run, before there is one
POINTS = 16  # as a power of 2: puts a critical value within 1e-3
V = TypeVar("V", bound=Hashable)
Floats = NDArray[np.float64]
Values = Mapping[V, Mapping[int, float]]  # by variant and seed
Pair = tuple[V, V]


@dataclass(frozen=True)
class Compared:
    """A difference: `estimate` has the interval of this one alone, `interval` is corrected for its family."""

    estimate: Estimate
    interval: tuple[float, float] | None = None

    @property
    def resolved(self) -> bool:
        """Whether the corrected interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0.0 or self.interval[1] < 0.0)


@dataclass(frozen=True)
class LeastSquares(Generic[V]):
    """Value = variant + seed + noise of one deviation, also where a run is missing; Scheffé 1959, chapter 4."""

    place: dict[V, int]  # of a variant in what follows
    effect_V: Floats
    seeds: dict[int, float]  # the effect of each, 0 for the first
    covariance_VV: Floats  # of the effects, for a deviation of 1
    deviation: float  # of one run; 0: there is nothing to know it from
    freedom: int

    @classmethod
    def of(cls, values: Values[V]) -> "LeastSquares[V]":
        seeds = sorted({seed for own in values.values() for seed in own})
        runs = [(v, seeds.index(seed), y) for v, own in enumerate(values.values()) for seed, y in own.items()]
        num_variants, num_runs = len(values), len(runs)
        design_NP = np.zeros((num_runs, num_variants + len(seeds)))
        design_NP[range(num_runs), [v for v, _, _ in runs]] = 1.0
        design_NP[range(num_runs), [num_variants + s for _, s, _ in runs]] = 1.0
        design_NP = np.delete(design_NP, num_variants, axis=1)  # the first seed's effect is 0
        y_N = np.array([y for _, _, y in runs])
        inverse_PP = np.linalg.pinv(design_NP.T @ design_NP)
        effect_P = inverse_PP @ (design_NP.T @ y_N)
        residual_N, freedom = y_N - design_NP @ effect_P, num_runs - design_NP.shape[1]
        deviation = math.sqrt(residual_N @ residual_N / freedom) if freedom > 0 else 0.0
        deviation = 0.0 if deviation <= ROUNDING * np.abs(y_N).max() else deviation
        return cls(
            {variant: number for number, variant in enumerate(values)},
            effect_P[:num_variants],
            dict(zip(seeds, [0.0, *effect_P[num_variants:].tolist()], strict=True)),
            inverse_PP[:num_variants, :num_variants],
            deviation,
            max(0, freedom),
        )

    def difference(self, pair: Pair[V]) -> tuple[float, float]:
        """Of two variants, and its standard error for a deviation of 1."""
        contrast_V = self._contrast_V(pair)
        return float(contrast_V @ self.effect_V), math.sqrt(contrast_V @ self.covariance_VV @ contrast_V)

    def correlation(self, pairs: Sequence[Pair[V]]) -> Floats:
        contrast_CV = np.stack([self._contrast_V(pair) for pair in pairs])
        covariance_CC = contrast_CV @ self.covariance_VV @ contrast_CV.T
        error_C = np.sqrt(covariance_CC.diagonal())
        return np.asarray(covariance_CC / np.outer(error_C, error_C))

    def _contrast_V(self, pair: Pair[V]) -> Floats:
        contrast_V = np.zeros(len(self.place))
        contrast_V[[self.place[variant] for variant in pair]] = 1.0, -1.0
        return contrast_V


@dataclass(frozen=True, eq=False)
class Pool(Generic[V]):
    """Runs that differ in nothing but their variant and seed; a variant has at least one.

    All spreads are taken to be one, but for variants whose own is clearly wider (`wide`): these are compared by the
    differences of their own seeds, and the widest are left out of the common deviation.
    """

    values: Values[V]

    @cached_property
    def connected(self) -> bool:
        """Whether seeds link every variant to every other, perhaps through others; else seeds are not used."""
        groups: list[set[int]] = []
        for own in self.values.values():
            linked = [group for group in groups if group & own.keys()]
            groups = [group for group in groups if group not in linked] + [set(own).union(*linked)]
        return len(groups) <= 1

    @cached_property
    def left_out(self) -> dict[V, float]:
        """The variants of over LEFT_OUT times the others' spread, the widest first, and how many times it is."""
        inside, result = dict(self.values), dict[V, float]()
        while self.connected and (spreads := _spreads(inside)):
            widest = max(spreads, key=lambda variant: spreads[variant])
            if spreads[widest] <= LEFT_OUT:
                break
            result[widest] = spreads[widest]
            del inside[widest]
        return result

    @cached_property
    def least_squares(self) -> LeastSquares[V]:
        return LeastSquares.of({v: own for v, own in self.values.items() if v not in self.left_out})

    @cached_property
    def wide(self) -> set[V]:
        """The variants that are compared by their own seeds."""
        inside = {v: own for v, own in self.values.items() if v not in self.left_out}
        return {*self.left_out, *(v for v, ratio in _spreads(inside).items() if ratio > OWN_SPREAD)}

    def pooled(self, pair: Pair[V]) -> bool:
        """Whether the difference has the error of the common deviation."""
        several = min(len(self.values[variant]) for variant in pair) > 1
        return self.connected and not self.wide & set(pair) and several and self.least_squares.deviation > 0.0

    def difference(self, pair: Pair[V]) -> Estimate:
        """Of the first less the second; `count`: seeds of the one that has fewer."""
        ours, theirs = (self.values[variant] for variant in pair)
        if not self.connected or self.wide & set(pair):
            shared = [ours[seed] - theirs[seed] for seed in ours if seed in theirs] if self.connected else []
            return estimate(shared) or welch(*(estimate(list(own.values())) for own in (ours, theirs)))
        (mean, error), count = self.least_squares.difference(pair), min(len(ours), len(theirs))
        if not self.pooled(pair):
            return Estimate(mean, count)
        return Estimate(mean, count, error * self.least_squares.deviation, self.least_squares.freedom)

    def family(self, pairs: Sequence[Pair[V]]) -> list[Compared]:
        """All pairs at once: that any interval misses has a probability of 5 %.

        Those with the common deviation by the multivariate t of their correlation (Dunnett 1955; Hothorn 2008), each
        other one by Bonferroni.
        """
        estimates = [self.difference(pair) for pair in pairs]
        pooled = [pair for pair in pairs if self.pooled(pair)]
        miss = (1.0 - CONFIDENCE) / max(1, sum(one.error is not None for one in estimates))
        times = self.critical(pooled, confidence=1.0 - miss * len(pooled)) if pooled else math.nan
        result = []
        for pair, one in zip(pairs, estimates, strict=True):
            if one.error is None or one.freedom is None:
                result.append(Compared(one))
            else:
                half = one.error * (times if self.pooled(pair) else t_quantile(one.freedom, 1.0 - miss))
                result.append(Compared(one, (one.mean - half, one.mean + half)))
        return result

    def critical(self, pairs: Sequence[Pair[V]], confidence: float = CONFIDENCE) -> float:
        """How many standard errors the corrected interval of each pair reaches, for pairs with the common deviation."""
        correlation_CC = self.least_squares.correlation(pairs)
        rows = tuple(map(tuple, correlation_CC.round(9).tolist()))
        return critical(rows, self.least_squares.freedom, round(confidence, 12))

    def detectable(self, pairs: Sequence[Pair[V]]) -> float | None:
        """The difference that such runs resolve in 80 % of sweeps, for the mean error of these pairs; None: unknown."""
        pooled = [pair for pair in pairs if self.pooled(pair)]
        if not pooled:
            return None
        error = math.fsum(self.difference(pair).error or 0.0 for pair in pooled) / len(pooled)
        return _detectable(self.critical(pooled), self.least_squares.freedom) * error


def holm(estimates: Sequence[Estimate]) -> list[Compared]:
    """Each with the interval at the level at which it is decided: a family errs in 5 % at most (Holm 1979)."""
    tested = sorted((one.p_value, n) for n, one in enumerate(estimates) if one.p_value is not None)
    result, left, rejecting = [Compared(one) for one in estimates], len(tested), True
    for p_value, n in tested:
        result[n] = Compared(estimates[n], estimates[n].interval(left))
        rejecting = rejecting and p_value < (1.0 - CONFIDENCE) / left
        left -= rejecting
    return result


def planned(num_variants: int, num_seeds: int, deviation: float = ASSUMED) -> float | None:
    """What `num_variants` with all seeds resolve against one of them in 80 % of sweeps; None for one of either.

    The corrected t for 95 % and that for 80 % of such sweeps, times the standard error of a difference.
    """
    freedom, others = (num_variants - 1) * (num_seeds - 1), num_variants - 1
    if freedom < 1:
        return None
    correlation = tuple(tuple(1.0 if i == j else 0.5 for j in range(others)) for i in range(others))
    return _detectable(critical(correlation, freedom), freedom) * deviation * math.sqrt(2 / num_seeds)


def _detectable(critical: float, freedom: float) -> float:
    return critical + t_quantile(freedom, 2 * POWER - 1)


@lru_cache(maxsize=4096)
def critical(correlation: tuple[tuple[float, ...], ...], freedom: float, confidence: float = CONFIDENCE) -> float:
    """The q with P(|T_1|, ..., |T_C| <= q) = `confidence` for a multivariate t with this correlation (C, C).

    Given the normals, the probability over the common deviation is exact; over them it is the mean of a fixed Sobol
    sequence (Genz and Bretz 2009). The correlation may be singular.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincc, ndtri
    from scipy.stats import qmc

    size = len(correlation)
    value_C, vector_CC = np.linalg.eigh(np.array(correlation))
    root_CC = vector_CC * np.sqrt(value_C.clip(min=0.0))
    normal_NC = ndtri(qmc.Sobol(size, seed=0).random_base2(POINTS)) @ root_CC.T
    square_N = np.square(normal_NC).max(axis=1)

    def above(q: float) -> float:
        return float(gammaincc(freedom / 2, freedom * square_N / (2 * q * q)).mean()) - confidence

    single, bonferroni = t_quantile(freedom, confidence), t_quantile(freedom, 1.0 - (1.0 - confidence) / size)
    return float(brentq(above, 0.99 * single, 1.01 * bonferroni, xtol=1e-5))


def _spreads(values: Values[V]) -> dict[V, float]:
    """The spread of each variant's seeds as a multiple of the others'; only where both are known.

    A variant's seeds are taken less the seeds' effects as the others have them.
    """
    ratios = {variant: _spread(variant, values) for variant in values}
    return {variant: ratio for variant, ratio in ratios.items() if ratio is not None}


def _spread(variant: V, values: Values[V]) -> float | None:
    others = Pool({other: own for other, own in values.items() if other != variant})
    if len(others.values) < 2 or not others.connected:
        return None
    fit = LeastSquares.of(others.values)
    rest = [y - fit.seeds[seed] for seed, y in values[variant].items() if seed in fit.seeds]
    if len(rest) < 2 or fit.deviation == 0.0:
        return None
    square = variance(rest) / fit.deviation**2 - 1 / len(others.values)  # less that of the seeds' effects
    return math.sqrt(max(0.0, square))
