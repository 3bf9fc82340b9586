"""Values of variants that ran with the same seeds, as variant + seed + noise."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from switch_lm.stats.intervals import ROUNDING

V = TypeVar("V", bound=Hashable)
Floats = NDArray[np.float64]
Values = Mapping[V, Mapping[int, float]]  # by variant and seed
Pair = tuple[V, V]


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
    def of(cls, values: Values[V]) -> Self:
        seeds = sorted({seed for own in values.values() for seed in own})
        runs = [(v, seeds.index(seed), y) for v, own in enumerate(values.values()) for seed, y in own.items()]
        num_variants, num_runs = len(values), len(runs)
        design_NP = np.zeros((num_runs, num_variants + len(seeds)))
        design_NP[range(num_runs), [v for v, _, _ in runs]] = 1.0
        design_NP[range(num_runs), [num_variants + s for _, s, _ in runs]] = 1.0
        design_NP = np.delete(design_NP, num_variants, axis=1)  # the first seed's effect is 0
        y_N = np.array([y for _, _, y in runs])
        inverse_PP = np.linalg.pinv(design_NP.T @ design_NP).astype(np.float64)
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
