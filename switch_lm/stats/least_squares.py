"""Values of variants that ran with the same seeds, as variant + seed + noise (Scheffé 1959, chapter 4)."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from switch_lm.stats.intervals import ROUNDING

V = TypeVar("V", bound=Hashable)
Floats = NDArray[np.float64]
Values = Mapping[V, Mapping[int, float]]  # by variant and seed
Pair = tuple[V, V]


@dataclass(frozen=True, eq=False)
class LeastSquares(Generic[V]):
    """A fit to V variants and S seeds, of which any run may be missing; each variant and seed has one."""

    place: dict[V, int]  # of a variant in what follows
    ran_VS: NDArray[np.bool_]
    value_VS: Floats  # 0 where it did not run

    @classmethod
    def of(cls, values: Values[V]) -> Self:
        seeds = sorted({seed for own in values.values() for seed in own})
        value_VS = np.array([[own.get(seed, 0.0) for seed in seeds] for own in values.values()])
        ran_VS = np.array([[seed in own for seed in seeds] for own in values.values()])
        return cls({variant: number for number, variant in enumerate(values)}, ran_VS, value_VS)

    def without(self, variant: V) -> Self:
        """The fit to all others; a seed that none of them has stays, and no figure depends on it."""
        keep = [number for other, number in self.place.items() if other != variant]
        place = {other: number for number, other in enumerate(other for other in self.place if other != variant)}
        return type(self)(place, self.ran_VS[keep], self.value_VS[keep])

    @cached_property
    def connected(self) -> bool:
        """Whether seeds link every variant to every other, perhaps through others."""
        return bool(np.linalg.matrix_rank(self._seeds_SS, hermitian=True) == self.ran_VS.any(axis=0).sum() - 1)

    @cached_property
    def seed_S(self) -> Floats:
        """The effect of each seed, up to a constant."""
        return np.asarray(self._inverse_SS @ (self._centered_VS.sum(axis=0)))

    @cached_property
    def freedom(self) -> int:
        num_seeds, num_variants = int(self.ran_VS.any(axis=0).sum()), len(self.ran_VS)
        return int(self.ran_VS.sum()) - num_variants - num_seeds + 1

    @cached_property
    def deviation(self) -> float:
        """Of one run; 0 where there is nothing to know it from."""
        rest_VS = self._centered_VS - self._center(np.broadcast_to(self.seed_S, self.ran_VS.shape))
        deviation = math.sqrt(np.square(rest_VS).sum() / self.freedom) if self.freedom > 0 else 0.0
        return 0.0 if deviation <= ROUNDING * np.abs(self.value_VS).max() else deviation

    def difference(self, pair: Pair[V]) -> tuple[float, float]:
        """Of the first variant less the second, and its standard error for a deviation of 1."""
        ours, theirs = (self.place[variant] for variant in pair)
        (a, ab), (_, b) = self._covariance_VV[np.ix_([ours, theirs], [ours, theirs])].tolist()
        return float(self._effect_V[ours] - self._effect_V[theirs]), math.sqrt(a - 2 * ab + b)

    def weights_VS(self, pair: Pair[V]) -> Floats:
        """What each run counts in a difference, which is the sum of weights times values."""
        share_VS = self.ran_VS / self._count_V[:, None]
        contrast_V = np.zeros(len(self.place))
        contrast_V[[self.place[variant] for variant in pair]] = 1.0, -1.0
        through_seeds_S = contrast_V @ share_VS @ self._inverse_SS
        return contrast_V[:, None] * share_VS - self._center(np.broadcast_to(through_seeds_S, self.ran_VS.shape))

    def correlation(self, pairs: Sequence[Pair[V]]) -> Floats:
        """Of C differences (C, C)."""
        contrast_CV, rows = np.zeros((len(pairs), len(self.place))), range(len(pairs))
        contrast_CV[rows, [self.place[ours] for ours, _ in pairs]] = 1.0
        contrast_CV[rows, [self.place[theirs] for _, theirs in pairs]] = -1.0
        covariance_CC = contrast_CV @ self._covariance_VV @ contrast_CV.T
        error_C = np.sqrt(covariance_CC.diagonal())
        return np.asarray(covariance_CC / np.outer(error_C, error_C))

    @cached_property
    def _effect_V(self) -> Floats:
        return self._mean(self.value_VS - np.where(self.ran_VS, self.seed_S, 0.0))

    @cached_property
    def _count_V(self) -> Floats:
        return self.ran_VS.sum(axis=1).astype(np.float64)

    def _mean(self, value_VS: Floats) -> Floats:
        return np.asarray(value_VS.sum(axis=1) / self._count_V)

    def _center(self, value_VS: Floats) -> Floats:
        """Less each variant's mean over its seeds."""
        value_VS = np.where(self.ran_VS, value_VS, 0.0)
        return np.where(self.ran_VS, value_VS - self._mean(value_VS)[:, None], 0.0)

    @cached_property
    def _centered_VS(self) -> Floats:
        return self._center(self.value_VS)

    @cached_property
    def _seeds_SS(self) -> Floats:
        """The normal equations of the seeds' effects, after those of the variants are solved."""
        share_VS = self.ran_VS / self._count_V[:, None]
        return np.asarray(np.diag(self.ran_VS.sum(axis=0)) - self.ran_VS.T @ share_VS)

    @cached_property
    def _inverse_SS(self) -> Floats:
        return np.linalg.pinv(self._seeds_SS, hermitian=True).astype(np.float64)

    @cached_property
    def _covariance_VV(self) -> Floats:
        """Of the variants' effects, for a deviation of 1."""
        share_VS = self.ran_VS / self._count_V[:, None]
        return np.asarray(np.diag(1.0 / self._count_V) + share_VS @ self._inverse_SS @ share_VS.T)
