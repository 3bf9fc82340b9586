"""How often the intervals of means over windows and batches hold, on data shaped like those of `inspect`."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from calibration_table import COVERAGE, REPEATS, calibrated
from torch import Tensor

from switch_lm.inspection.ablation import costliest
from switch_lm.stats.clusters import LEAST, difference, mean, mean_where, means_of_parts
from switch_lm.stats.corrections import holm
from switch_lm.stats.intervals import Estimate

pytestmark = pytest.mark.long
TRUTH, CHARACTERS = 0.03, 16


def holds(estimate: Estimate | None, truth: float) -> bool:
    interval = estimate.interval() if estimate else None
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def resolved(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.resolved()


def heavy(*shape: int, draw: torch.Generator) -> Tensor:
    """Student's t with 3 degrees of freedom, whose tails are as heavy as those of losses in nats."""
    square = torch.randn(3, *shape, generator=draw).square().mean(dim=0)
    return torch.randn(*shape, generator=draw) / square.sqrt()


def losses(seed: int, windows: int, *, batch: int = 1) -> Tensor:
    """Values of REPEATS texts, windows and characters: each window has an effect of its own, and so has each batch."""
    draw = torch.Generator().manual_seed(seed)
    window = heavy(REPEATS, windows, 1, draw=draw) * 0.5
    common = torch.randn(REPEATS, windows // batch, 1, 1, generator=draw).expand(-1, -1, batch, 1) * 0.5 * (batch > 1)
    return heavy(REPEATS, windows, CHARACTERS, draw=draw) + window + common.reshape(REPEATS, windows, 1)


def clumped(seed: int, windows: int) -> Tensor:
    """Marks of REPEATS texts: in 3 of the windows on most characters, in the others on few."""
    draw = torch.Generator().manual_seed(seed)
    rate = torch.rand(REPEATS, windows, 1, generator=draw) * 0.06
    rate[:, :3] = torch.tensor([1.0, 0.7, 0.4])[:, None]
    where = torch.rand(REPEATS, windows, CHARACTERS, generator=draw) < rate
    where[:, :: windows // LEAST, 0], where[:, :, 1] = True, False
    return where


@pytest.mark.parametrize("windows", [128, 32, LEAST])
def test_a_mean_over_windows(windows: int) -> None:
    planted, null = losses(0, windows) + TRUTH, losses(1, windows)
    calibrated(
        "mean over windows",
        f"{windows} windows with effects of their own, heavy tails",
        covers=[holds(mean(value_BN), TRUTH) for value_BN in planted],
        false=[resolved(mean(value_BN)) for value_BN in null],
    )


@pytest.mark.parametrize("windows", [128, 32, LEAST])
def test_a_mean_over_clumped_marks(windows: int) -> None:
    planted, null = (zip(losses(s, windows), clumped(s + 2, windows), strict=True) for s in (2, 3))
    calibrated(
        "mean over marked characters",
        f"most marks in 3 of {windows} windows",
        covers=[holds(mean_where(value_BN + TRUTH, where_BN), TRUTH) for value_BN, where_BN in planted],
        false=[resolved(mean_where(value_BN, where_BN)) for value_BN, where_BN in null],
    )


def test_marks_that_are_clumped_need_the_effective_number_of_windows() -> None:
    """What holds above does so by the degrees of freedom: with windows - 1, too few intervals cover."""
    covers = []
    for value_BN, where_BN in zip(losses(2, 32), clumped(4, 32), strict=True):
        result = mean_where(value_BN, where_BN)
        assert result is not None
        covers.append(holds(replace(result, freedom=result.count - 1.0), 0.0))
    assert fmean(covers) < COVERAGE


@pytest.mark.parametrize("windows", [128, LEAST])
def test_a_difference_between_clumped_marks_and_all_others(windows: int) -> None:
    planted, null = (zip(losses(s, windows), clumped(s + 2, windows), strict=True) for s in (6, 7))
    calibrated(
        "difference of marked characters and all others",
        f"most marks in 3 of {windows} windows",
        covers=[holds(difference(v_BN + TRUTH * w_BN, w_BN, ~w_BN), TRUTH) for v_BN, w_BN in planted],
        false=[resolved(difference(v_BN, w_BN, ~w_BN)) for v_BN, w_BN in null],
    )


def in_batches(value_RBN: Tensor) -> Tensor:
    """As rows of 8 batches."""
    return value_RBN.reshape(REPEATS, LEAST, -1)


def test_a_mean_over_batches_that_share_places() -> None:
    planted, null = (
        zip(in_batches(losses(s, 128, batch=16)), in_batches(clumped(s + 2, 128)), strict=True) for s in (10, 11)
    )
    calibrated(
        "mean over marked characters of batches",
        f"{LEAST} batches of 16 windows with a common effect, most marks in 3 windows",
        covers=[holds(mean_where(value_BN + TRUTH, where_BN), TRUTH) for value_BN, where_BN in planted],
        false=[resolved(mean_where(value_BN, where_BN)) for value_BN, where_BN in null],
    )


def test_a_difference_between_the_halves_of_batches_that_share_places() -> None:
    """Shares of dropped tokens: a batch drops between 30 and 60%, and its halves differ in its own way."""

    def dropped(seed: int, later: float) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        rate = 0.3 + 0.3 * torch.rand(REPEATS, LEAST, 1, generator=draw)
        slope = torch.randn(REPEATS, LEAST, 1, generator=draw) * 0.05 + later / 2
        share = rate + torch.where(
            late_N, slope, -slope
        )  # a probability, whatever the slope: 6 deviations from 0 and 1
        return (torch.rand(share.shape, generator=draw) < share).float()

    late_N = torch.arange(16 * CHARACTERS) >= 8 * CHARACTERS
    late_BN = late_N.expand(LEAST, -1)
    planted, null = in_batches(dropped(14, TRUTH)), in_batches(dropped(15, 0.0))
    calibrated(
        "difference of the halves of a batch",
        f"{LEAST} batches of 16 windows with a common effect",
        covers=[holds(difference(value_BN, late_BN, ~late_BN), TRUTH) for value_BN in planted],
        false=[resolved(difference(value_BN, late_BN, ~late_BN)) for value_BN in null],
    )


def chosen_cost(change_BE: Tensor) -> Estimate:
    chosen = costliest(change_BE)
    assert chosen is not None
    return chosen.cost


def test_the_costliest_expert_chosen_on_half_of_the_windows() -> None:
    """Of 8 experts that all cost the same, so that the one that seems to cost most does so by chance."""
    draw = torch.Generator().manual_seed(16)
    planted, null = (heavy(REPEATS, 32, 8, draw=draw) + heavy(REPEATS, 32, 1, draw=draw) * 0.5 for _ in range(2))
    calibrated(
        "the costliest expert",
        "8 equal experts, chosen on 16 windows, estimated on 16",
        covers=[holds(chosen_cost(change_BE + TRUTH), TRUTH) for change_BE in planted],
        false=[resolved(chosen_cost(change_BE)) for change_BE in null],
    )


def test_a_corrected_table() -> None:
    comparisons = 16
    draw = torch.Generator().manual_seed(18)
    tables = heavy(REPEATS, comparisons, 32, 1, draw=draw)
    calibrated(
        "any interval of a corrected table",
        f"{comparisons} independent means over 32 windows, heavy tails",
        false=[any(mean(value_B1).resolved(comparisons) for value_B1 in table) for table in tables],
    )


@pytest.mark.parametrize("parts", [20, 2])
def test_a_mean_of_each_of_several_parts(parts: int) -> None:
    """As of trained pairs: scenes of 200 to 3,000 characters, whose means differ by a little more than chance."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        number_RPB = torch.randint(200, 3000, (REPEATS, parts, 8), generator=draw).double()
        number_RPB *= torch.arange(8) < torch.randint(2, 9, (REPEATS, parts, 1), generator=draw)
        number_RPB[:, -1] += (number_RPB[:, -1] == 0) * 500.0  # the last part has all 8
        spread_RPB = (0.25 / number_RPB.clamp(min=1) + 0.007**2).sqrt()
        return number_RPB * spread_RPB * torch.randn(number_RPB.shape, generator=draw).double(), number_RPB

    planted = zip(*drawn(20), strict=True)
    null = (holm(means_of_parts(total_PB, number_PB)) for total_PB, number_PB in zip(*drawn(21), strict=True))
    calibrated(
        "loss by play, scenes of one spread",
        f"{parts} plays of 2 to 8 scenes of 200 to 3,000 characters with effects of their own",
        covers=[holds(means_of_parts(total_PB + TRUTH * n_PB, n_PB)[0], TRUTH) for total_PB, n_PB in planted],
        false=[any(one.resolved for one in family) for family in null],
    )
