"""Differences between variants that ran with the same seeds: which deviation each has, and a family of them at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Generic, NamedTuple

import numpy as np

from switch_lm.stats.corrections import Compared, critical
from switch_lm.stats.intervals import CONFIDENCE, POWER, Estimate, estimate, t_quantile, welch
from switch_lm.stats.least_squares import LeastSquares, Pair, V, Values

LEFT_OUT = 3.0  # times the others' spread: such a variant is left out of the pool,
LEFT_OUT_BY_CHANCE = 0.01  # unless this share of sweeps with equal spreads have one
# A variant is taken to be wider than the others where equal spreads show as much in this share of variants; the second
# share is for ENOUGH_SEEDS. Smaller ones miss too many. With three seeds power would fall from 89 to 72%, for little.
WIDER_BY_CHANCE, OF_FEW = 0.13, 0.25
ENOUGH_SEEDS = 4


class Spread(NamedTuple):
    """How far a variant's seeds scatter about the effects that the seeds have in all others."""

    ratio: float  # of its deviation to the others'
    chance: float  # of so much if all spreads were equal, by an F test
    deviation: float
    freedom: int

    @property
    def wider(self) -> bool:
        """Whether there are seeds enough to judge it, and it is wider than the others'."""
        seeds = self.freedom + 1
        return seeds >= ENOUGH_SEEDS and self.chance < (WIDER_BY_CHANCE if seeds > ENOUGH_SEEDS else OF_FEW)


@dataclass(frozen=True, eq=False)
class Pool(Generic[V]):
    """Runs that differ in nothing but their variant and seed; each variant has at least one.

    All have one deviation, but for variants that are clearly `wider`: these have their own. The widest, `left_out`, do
    not count for the common one.
    """

    values: Values[V]

    @cached_property
    def one_way(self) -> bool:
        """Whether seeds do not link all variants, so that they are not used."""
        return not self._of_all.connected

    @cached_property
    def _spreads(self) -> tuple[dict[V, Spread], dict[V, Spread]]:
        """Of the variants that are left out, the widest first, and of all others without them."""
        left_out, inside = dict[V, Spread](), self._of_all
        while not self.one_way and (spreads := _spreads(inside)):
            widest = max(spreads, key=lambda variant: spreads[variant].ratio)
            spread = spreads[widest]
            if spread.ratio <= LEFT_OUT or spread.chance * len(spreads) >= LEFT_OUT_BY_CHANCE:
                return left_out, spreads
            left_out[widest] = spreads[widest]
            inside = inside.without(widest)
        return left_out, {}

    @cached_property
    def left_out(self) -> dict[V, Spread]:
        """The variants of over LEFT_OUT times the others' spread, the widest first."""
        return self._spreads[0]

    @cached_property
    def wider(self) -> dict[V, Spread]:
        """The variants whose own deviation counts in their comparisons; `left_out` are among them."""
        left_out, spreads = self._spreads
        return left_out | {v: spread for v, spread in spreads.items() if spread.wider}

    @cached_property
    def least_squares(self) -> LeastSquares[V]:
        """Of all that is not left out."""
        return LeastSquares.of({v: own for v, own in self.values.items() if v not in self.left_out})

    @cached_property
    def _of_all(self) -> LeastSquares[V]:
        return LeastSquares.of(self.values)

    def pooled(self, pair: Pair[V]) -> bool:
        """Whether the error of the difference is that of the common deviation."""
        several = min(len(self.values[variant]) for variant in pair) > 1
        return not self.one_way and several and not self.wider.keys() & set(pair) and self.least_squares.deviation > 0.0

    def difference(self, pair: Pair[V]) -> Estimate:
        """Of the first less the second; `count`: seeds of the one that has fewer."""
        if self.one_way:
            return welch(*filter(None, (estimate(list(self.values[variant].values())) for variant in pair)))
        fit = self._of_all if self.left_out.keys() & set(pair) else self.least_squares
        (mean, error), count = fit.difference(pair), min(len(self.values[variant]) for variant in pair)
        if self.pooled(pair):
            return Estimate(mean, count, error * self.least_squares.deviation, self.least_squares.freedom)
        if count < 2 or self.least_squares.deviation == 0.0 or not self.wider.keys() & set(pair):
            return Estimate(mean, count)
        return Estimate(mean, count, *self._own_error(fit, pair))

    def _own_error(self, fit: LeastSquares[V], pair: Pair[V]) -> tuple[float, float]:
        """Where a variant has a deviation of its own; degrees of freedom by Satterthwaite (1946)."""
        weight_V, common = np.square(fit.weights_VS(pair)).sum(axis=1), self.least_squares
        own = {v: spread for v, spread in self.wider.items() if v in fit.place}
        parts = [(spread.deviation**2 * weight_V[fit.place[v]], spread.freedom) for v, spread in own.items()]
        rest = weight_V.sum() - sum(weight_V[fit.place[v]] for v in own)
        parts.append((common.deviation**2 * rest, common.freedom))
        square = float(sum(part for part, _ in parts))
        return math.sqrt(square), square**2 / float(sum(part**2 / freedom for part, freedom in parts))

    def family(self, pairs: Sequence[Pair[V]], confidence: float = CONFIDENCE) -> list[Compared]:
        """All pairs at once: that any interval misses has a probability of 1 - `confidence`.

        Those with the common deviation by the multivariate t of their correlation (Dunnett 1955; Hothorn et al. 2008),
        each other one by Bonferroni.
        """
        estimates = [self.difference(pair) for pair in pairs]
        pooled = [pair for pair in pairs if self.pooled(pair)]
        miss = (1.0 - confidence) / max(1, sum(one.error is not None for one in estimates))
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

    def detectable(self, pairs: Sequence[Pair[V]], confidence: float = CONFIDENCE) -> float | None:
        """The difference that such runs resolve in 80% of sweeps, the mean over these pairs; None: not known."""
        sizes = []
        for compared in self.family(pairs, confidence):
            one, ends = compared.estimate, compared.interval
            if ends is not None and one.error is not None and one.freedom is not None:
                sizes.append((ends[1] - ends[0]) / 2 + t_quantile(one.freedom, 2 * POWER - 1) * one.error)
        return fmean(sizes) if sizes else None


def _spreads(fit: LeastSquares[V]) -> dict[V, Spread]:
    """Of the variants with two seeds or more, where two others are there to compare them with."""
    spreads = {variant: _spread(variant, fit) for variant in fit.place}
    return {variant: spread for variant, spread in spreads.items() if spread is not None}


def _spread(variant: V, fit: LeastSquares[V]) -> Spread | None:
    from scipy.special import fdtrc

    if len(fit.place) < 3 or not (others := fit.without(variant)).connected or others.deviation == 0.0:
        return None
    number = fit.place[variant]
    shared_S = fit.ran_VS[number] & others.ran_VS.any(axis=0)
    if shared_S.sum() < 2:
        return None
    rest_S = fit.value_VS[number, shared_S] - others.seed_S[shared_S]
    square, known = rest_S.var(ddof=1) / others.deviation**2, 1 / len(others.place)  # that of the seeds' effects
    ratio = math.sqrt(max(0.0, square - known))
    chance = float(fdtrc(len(rest_S) - 1, others.freedom, square / (1 + known)))
    return Spread(ratio, chance, ratio * others.deviation, len(rest_S) - 1)
