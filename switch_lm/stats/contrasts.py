"""Differences between variants that ran with the same seeds: which deviation each has, and a family of them at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Generic, NamedTuple

from switch_lm.stats.corrections import Compared, critical
from switch_lm.stats.intervals import CONFIDENCE, POWER, Estimate, estimate, t_quantile, welch
from switch_lm.stats.least_squares import LeastSquares, Pair, V, Values

LEFT_OUT = 3.0  # times the others' spread: such a variant is left out of the pool,
LEFT_OUT_BY_CHANCE = 0.01  # unless this share of sweeps with equal spreads have one
WIDER_BY_CHANCE = 0.13  # of the variants with equal spreads are taken to be wider: fewer, and too few of those that are
ENOUGH_SEEDS = (
    5  # to judge it: with three the power falls from 88 % to 72 %, and one of three times the spread is missed
)


class Spread(NamedTuple):
    """How far a variant's seeds scatter about the effects that the seeds have in all others."""

    ratio: float  # of its deviation to the others'
    chance: float  # of so much if all spreads were equal, by an F test
    deviation: float


@dataclass(frozen=True, eq=False)
class Pool(Generic[V]):
    """Runs that differ in nothing but their variant and seed; each variant has at least one.

    All have one deviation, but for variants that are clearly `wider`: these have their own. The widest, `left_out`, do
    not count for the common one.
    """

    values: Values[V]

    @cached_property
    def one_way(self) -> bool:
        """Whether seeds cannot be used: they do not link all variants, or nothing is left to know a deviation from."""
        return not self._of_all.connected or self._of_all.freedom == 0

    @cached_property
    def _spreads(self) -> tuple[dict[V, Spread], dict[V, Spread]]:
        """Of the variants that are left out, the widest first, and of all others without them."""
        left_out, inside = dict[V, Spread](), self._of_all
        while not self.one_way and (spreads := _spreads(inside)):
            widest = max(spreads, key=lambda variant: spreads[variant].ratio)
            ratio, chance, _ = spreads[widest]
            if ratio <= LEFT_OUT or chance * len(spreads) >= LEFT_OUT_BY_CHANCE:
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
        several = {v: spread for v, spread in spreads.items() if len(self.values[v]) >= ENOUGH_SEEDS}
        return left_out | {v: spread for v, spread in several.items() if spread.chance < WIDER_BY_CHANCE}

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
        if count < 2 or not self.wider.keys() & set(pair):
            return Estimate(mean, count)
        squares, parts = zip(*map(self._square, pair), strict=True)
        return Estimate(mean, count, error * math.sqrt(sum(squares) / 2), sum(squares) ** 2 / sum(parts))

    def _square(self, variant: V) -> tuple[float, float]:
        """The square of its deviation, and that again, squared, per degree of freedom (Satterthwaite 1946)."""
        fit, own = self.least_squares, self.wider.get(variant)
        square = fit.deviation**2 if own is None else own.deviation**2
        return square, square**2 / (fit.freedom if own is None else len(self.values[variant]) - 1)

    def family(self, pairs: Sequence[Pair[V]]) -> list[Compared]:
        """All pairs at once: that any interval misses has a probability of 5 %.

        Those with the common deviation by the multivariate t of their correlation (Dunnett 1955; Hothorn et al. 2008),
        each other one by Bonferroni.
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
        """The difference that such runs resolve in 80 % of sweeps, the mean over these pairs; None: not known."""
        sizes = []
        for compared in self.family(pairs):
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
    return Spread(ratio, chance, ratio * others.deviation)
