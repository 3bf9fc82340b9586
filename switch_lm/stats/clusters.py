"""Means over characters whose windows, not characters, are the independent draws."""

import math

import torch
from torch import Tensor

from switch_lm.stats.intervals import Estimate, t_quantile


def mean(value_BN: Tensor) -> Estimate:
    """With a 95 % interval over the B rows; `count`: rows."""
    return _estimate(*_part(value_BN.double(), torch.ones_like(value_BN, dtype=torch.bool)))


def mean_where(value_BN: Tensor, where_BN: Tensor) -> Estimate | None:
    """The same of the values marked; None if none is.

    Linearised, since rows may hold unequal numbers of them (Cochran, Sampling Techniques, 6.3).
    """
    return _estimate(*_part(value_BN.double(), where_BN)) if where_BN.any() else None


def difference(value_BN: Tensor, first_BN: Tensor, second_BN: Tensor) -> Estimate | None:
    """The mean of the values marked `first` less that of those marked `second`; None if one mark is nowhere."""
    if not (first_BN.any() and second_BN.any()):
        return None
    (first, first_B), (second, second_B) = (_part(value_BN.double(), where_BN) for where_BN in (first_BN, second_BN))
    return _estimate(first - second, first_B - second_B)


def _part(value_BN: Tensor, where_BN: Tensor) -> tuple[float, Tensor]:
    """A mean, and how far each row moves it."""
    count = int(where_BN.sum())
    center = value_BN[where_BN].sum().item() / count
    return center, ((value_BN - center) * where_BN).sum(dim=1) / count


def _estimate(center: float, residual_B: Tensor) -> Estimate:
    rows = residual_B.numel()
    if rows < 2:
        return Estimate(center, rows)
    error = math.sqrt(rows / (rows - 1) * residual_B.square().sum().item())
    half = t_quantile(rows - 1) * error
    return Estimate(center, rows, error * math.sqrt(rows), center - half, center + half)


def nats(estimate: Estimate) -> str:
    """The mean with its interval, signed."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.4f} nats (one window: no interval)"
    return f"{estimate.mean:+.4f} nats (95 % interval {estimate.low:+.4f} to {estimate.high:+.4f})"
