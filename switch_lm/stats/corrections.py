"""What holds of several comparisons at once: intervals that are corrected for their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from switch_lm.stats.intervals import CONFIDENCE, POWER, Estimate, t_quantile

ASSUMED = 0.010  # nats; the deviation of a run, before there is one
POINTS, MOST = 16, 23  # as powers of 2: puts the probability within 2e-4; numbers in memory, with many comparisons


@dataclass(frozen=True)
class Compared:
    """A difference: `estimate` has the interval of this one alone, `interval` is corrected for its family."""

    estimate: Estimate
    interval: tuple[float, float] | None = None

    @property
    def resolved(self) -> bool:
        """Whether the corrected interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0.0 or self.interval[1] < 0.0)


def holm(estimates: Sequence[Estimate]) -> list[Compared]:
    """Each with the interval at the level at which it is decided: a family errs in 5% at most (Holm 1979)."""
    tested = sorted((one.p_value, n) for n, one in enumerate(estimates) if one.p_value is not None)
    result, left, rejecting = [Compared(one) for one in estimates], len(tested), True
    for p_value, n in tested:
        result[n] = Compared(estimates[n], estimates[n].interval(left))
        rejecting = rejecting and p_value < (1.0 - CONFIDENCE) / left
        left -= rejecting
    return result


def planned(num_variants: int, num_seeds: int, deviation: float = ASSUMED) -> float | None:
    """What `num_variants` with all seeds resolve against one of them in 80% of sweeps; None for one of either.

    The corrected t for 95% and that for 80% of such sweeps, times the standard error of a difference.
    """
    freedom, others = (num_variants - 1) * (num_seeds - 1), num_variants - 1
    if freedom < 1:
        return None
    correlation = tuple(tuple(1.0 if i == j else 0.5 for j in range(others)) for i in range(others))
    errors = critical(correlation, freedom) + t_quantile(freedom, 2 * POWER - 1)
    return errors * deviation * math.sqrt(2 / num_seeds)


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
    points = min(POINTS, MOST - size.bit_length())
    normal_NC = ndtri(qmc.Sobol(size, seed=0).random_base2(points)) @ root_CC.T
    square_N = np.square(normal_NC).max(axis=1)

    def above(q: float) -> float:
        return float(gammaincc(freedom / 2, freedom * square_N / (2 * q * q)).mean()) - confidence

    single, bonferroni = t_quantile(freedom, confidence), t_quantile(freedom, 1.0 - (1.0 - confidence) / size)
    return float(brentq(above, 0.99 * single, 1.01 * bonferroni, xtol=1e-5))
