"""Differences between losses in nats per character, over units of the text that were sampled independently."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from switch_lm.stats.clusters import LEAST, mean
from switch_lm.stats.intervals import Estimate

SHOWN = 5e-5  # what four decimals show


def gap(first_BS: Tensor, second_BS: Tensor, *, rows: int, rounding: float = 0.0) -> Estimate:
    """The mean of the first losses less the second ones, paired by character.

    A unit is `rows` consecutive windows: a batch of training where rows share their experts' places, so that what one
    of them takes the others lack, else 1: characters of one window are alike in any case. A text with fewer than 8
    units gives no interval. Values within `rounding` are 0.
    """
    difference_BS = first_BS.double() - second_BS.double()
    num_units = len(difference_BS) // rows
    if bool((difference_BS.mean(dim=1).abs() <= rounding).all()):
        return Estimate(0.0, num_units)
    if num_units == 0 or not difference_BS.isfinite().all():
        return Estimate(difference_BS.mean().item(), num_units)
    return mean(difference_BS[: num_units * rows].reshape(num_units, -1))


def equal(one: Estimate) -> bool:
    """Whether every window is equal up to rounding; then `gap` gives 0 without an interval."""
    return one.mean == 0.0 and one.error is None


def plus_minus(one: Estimate) -> str:
    """The mean ± half of its 95% interval, where there is one; 0 where all is equal up to rounding."""
    half = one.half()
    if equal(one):
        return "0"
    size = f"{one.mean:+.0e}" if max(abs(one.mean), half or 0.0) < SHOWN else f"{one.mean:+.4f}"
    return size if half is None else f"{size} ± {half:{'.0e' if half < SHOWN else '.4f'}}"


def measured(one: Estimate, *, rows: int) -> str:
    """The same in words, with the number of units, or why there is no interval."""
    units = f"{one.count} {'windows' if rows == 1 else f'batches of {rows} windows'}"
    if equal(one):
        return f"equal up to rounding ({units})"
    if one.error is not None:
        return f"{plus_minus(one)} nats per character ({units})"
    why = f"the text has {units}, and {LEAST} are needed" if one.count < LEAST else f"all {units} are equal"
    return f"{plus_minus(one)} nats per character (no interval: {why})"


def unseen(one: Estimate) -> str:
    """What the interval of an effect that is not seen rules out."""
    if equal(one):
        return "no score differs by more than rounding"
    if one.detectable is None:
        return "without an interval nothing is known of other texts"
    return f"an effect of {one.detectable:.2g} nats would have been seen in 80% of such texts"


def figures(one: Estimate, name: str = "") -> dict[str, float | None]:
    """As plain numbers."""
    return {
        f"{name}nats": one.mean,
        f"{name}half of the 95% interval": one.half(),
        f"{name}units": one.count,
        f"{name}detectable": one.detectable,
        f"{name}standard error": one.error,
        f"{name}freedom": one.freedom,
    }


def of_figures(numbers: Mapping[str, Any], name: str = "") -> Estimate | None:
    """What `figures` were made of; None if there are none of this name."""
    if f"{name}nats" not in numbers:
        return None
    return Estimate(*(numbers[f"{name}{part}"] for part in ("nats", "units", "standard error", "freedom")))
