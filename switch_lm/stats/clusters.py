"""Means over characters whose windows, not characters, were sampled independently, and how they are printed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from switch_lm.stats.intervals import ROUNDING, Estimate

LEAST = 8  # rows; fewer give no interval: see docs/statistics.md
DECIDED = 2.0  # effective rows; with fewer one row decides, and there is no interval


def mean(value_BN: Tensor) -> Estimate:
    """Over all values, with the B rows as the units: t with B - 1 degrees of freedom."""
    return _marked(value_BN.double(), [torch.ones_like(value_BN, dtype=torch.bool)])


def mean_where(value_BN: Tensor, where_BN: Tensor) -> Estimate | None:
    """The same over the values marked; None if none is. Only rows that hold marks count."""
    return _marked(value_BN.double(), [where_BN]) if where_BN.any() else None


def difference(value_BN: Tensor, first_BN: Tensor, second_BN: Tensor) -> Estimate | None:
    """The mean of the values marked `first` less that of those marked `second`; None if one mark is nowhere.

    `count`: rows with the mark that fewer rows hold.
    """
    return _marked(value_BN.double(), [first_BN, second_BN]) if first_BN.any() and second_BN.any() else None


def _marked(value_BN: Tensor, marks: Sequence[Tensor]) -> Estimate:
    """The mean of the first marks, less that of the second if there are any."""
    number_MB = torch.stack([where_BN.sum(dim=1) for where_BN in marks]).double()
    total_MB = torch.stack([(value_BN * where_BN).sum(dim=1) for where_BN in marks])
    number_M1, total_M1 = number_MB.sum(dim=1, keepdim=True), total_MB.sum(dim=1, keepdim=True)
    center, count = _first_less_second(total_M1 / number_M1).item(), int((number_MB > 0).sum(dim=1).min())
    if count < LEAST:
        return Estimate(center, count)
    without_B = _first_less_second((total_M1 - total_MB) / (number_M1 - number_MB))
    effective = (number_M1[:, 0].square() / number_MB.square().sum(dim=1)).min().item()
    scale = value_BN.abs().max().item()
    return jackknife(center, without_B[(number_MB > 0).any(dim=0)], count=count, effective=effective, scale=scale)


def _first_less_second(mean_MB: Tensor) -> Tensor:
    return mean_MB[0] if len(mean_MB) == 1 else mean_MB[0] - mean_MB[1]


def jackknife(center: float, without_G: Tensor, *, count: int, effective: float, scale: float) -> Estimate:
    """From a statistic and its values without each of G units (delete-one jackknife).

    `effective`: Kish's number of units, (sum n)^2 / sum n^2 for n marks in a unit, which is G if all have equally many;
    degrees of freedom are one less. `scale`: of the values; a spread that is only their rounding gives no interval.
    """
    units = len(without_G)
    error = math.sqrt((units - 1) / units * (without_G - center).square().sum().item())
    holds = error > ROUNDING * scale and effective >= DECIDED
    return Estimate(center, count, error, effective - 1.0) if holds else Estimate(center, count)


def means_of_parts(total_PB: Tensor, number_PB: Tensor) -> list[Estimate]:
    """The mean of the values of each of P parts, from their sums and numbers in B units; none may be empty.

    Units scatter alike about the mean of their part in all parts, so that a part with few units shares the degrees of
    freedom of all parts: the effective units of each, less 1. As error this takes the square root of sigma^2 / n for n
    values, so it assumes that the mean of a unit scatters as 1 / sqrt(n). Where units are off as a whole, it is right
    only if those of all parts have one size: a part of longer units than average then has too narrow an interval. A
    part of one unit has none.
    """
    number_P, count_P = number_PB.sum(dim=1), (number_PB > 0).sum(dim=1)
    mean_P, effective_P = total_PB.sum(dim=1) / number_P, number_P.square() / number_PB.square().sum(dim=1)
    square_PB = (total_PB - mean_P[:, None] * number_PB).square() / number_PB.clamp(min=1)
    units, freedom = int((count_P - 1).sum()), (effective_P - 1.0).sum().item()
    sigma = math.sqrt(square_PB.sum().item() / max(1.0, freedom))
    scale = (total_PB / number_PB).nan_to_num(0.0).abs().max()
    holds = units >= LEAST - 1 and freedom >= DECIDED - 1.0 and sigma > ROUNDING * scale.item()
    return [
        Estimate(mean, count, sigma / math.sqrt(number), freedom) if holds and count > 1 else Estimate(mean, count)
        for mean, count, number in zip(mean_P.tolist(), count_P.tolist(), number_P.tolist(), strict=True)
    ]


def plus_minus(estimate: Estimate, form: str, unit: str = "window") -> str:
    """The mean ± half of its 95% interval, in a form of format(), such as +.2%."""
    reason = f" ({without_interval(estimate, unit)})" if estimate.error is None else ""
    return f"{_mean_and_half(estimate, form)}{reason}"


def _mean_and_half(estimate: Estimate, form: str) -> str:
    if (half := estimate.half()) is None:
        return f"{estimate.mean:{form}}"
    form = _precise(half, form)
    return f"{estimate.mean:{form}} ± {half:{form.lstrip('+')}}"


def without_interval(estimate: Estimate, unit: str = "window") -> str:
    """Why an estimate has no interval."""
    units = unit if estimate.count == 1 else f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    alike = ", all equal or decided by one" if estimate.count >= LEAST else ""
    return f"{'one' if estimate.count == 1 else estimate.count} {units}{alike}: no interval"


def _precise(size: float, form: str) -> str:
    """With so many digits that what is not 0 does not look like it."""
    digits = int(form[-2])
    while size > 0.0 and digits < 9 and float(f"{size:.{digits}{form[-1]}}".rstrip("%")) == 0.0:
        digits += 1
    return f"{form[:-2]}{digits}{form[-1]}"
