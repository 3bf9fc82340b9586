"""Which tokens are dropped, and what it costs: closed forms in position order, planted differences, random drops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TEXT, tiny_model
from torch import Tensor

from switch_lm.inspection.drops import Drops, costs, drops, summary
from switch_lm.measure.scoring import whole
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe
from switch_lm.stats.intervals import Estimate
from switch_lm.stats.shares import independent
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=16)
BATCH_SIZE = 4
LONGER = Probe.of(PROBE.split_ids, context_length=16, num_windows=8 * BATCH_SIZE)


def drops_of(model: SwitchLM, **options: Any) -> Drops:
    return drops(model, PROBE, batch_size=BATCH_SIZE, **options)


def all_to_one(model: SwitchLM) -> SwitchLM:
    """Every token of every layer goes to expert 0: among equal experts the first is selected."""
    for w_DE in model.router_parameters():
        w_DE.data.zero_()
    return model


def summarized(
    dropped_BS: Tensor, nll_BS: Tensor | None = None, cost_BS: Tensor | None = None, *, shared: bool = False
) -> Drops:
    """One layer's drops, by hand; unless `shared`, every row has its own places."""
    nothing_BS = torch.zeros(dropped_BS.shape)
    return summary(
        dropped_BS[None],
        nothing_BS if cost_BS is None else cost_BS,
        by_expert_LE=torch.zeros(1, 4),
        ids_BS=LONGER.ids_BS if len(dropped_BS) > len(PROBE.ids_BS) else PROBE.ids_BS,
        nll_BS=nothing_BS if nll_BS is None else nll_BS,
        num_characters=len(VOCABULARY),
        capacity_factor=1.0,
        batch_size=BATCH_SIZE,
        shared=shared,
    )


def at_random(share: float, seed: int = 0, probe: Probe = PROBE) -> Tensor:
    return torch.rand(probe.ids_BS.shape, generator=torch.Generator().manual_seed(seed)) < share


# --- In a model


def test_under_position_order_all_but_the_first_of_a_full_expert_are_dropped() -> None:
    """Four rows of 16 tokens, four experts, factor 0.5: expert 0 takes 8 of the 64."""
    model = all_to_one(tiny_model(len(VOCABULARY), capacity_factor=0.5))
    result = drops_of(model)
    assert result.by_row_LR.tolist() == [[0.5, 1.0, 1.0, 1.0]] * 2
    assert result.by_position_LS.tolist() == [[0.75] * 8 + [1.0] * 8] * 2
    assert [result.mean(layer).mean for layer in (0, 1)] == [0.875, 0.875]
    assert result.late_rows is not None and result.late_rows == Estimate(0.25, 8)  # in all 8 batches
    assert result.late_positions is not None and result.late_positions.mean == pytest.approx(0.25)
    assert result.at_once == pytest.approx((0.125, 0.0, 0.875))  # both layers drop the same tokens
    assert result.at_once_by_chance == pytest.approx((0.125**2, 2 * 0.125 * 0.875, 0.875**2))
    assert result.by_expert_LE[:, 0].tolist() == [0.875, 0.875]
    assert result.by_expert_LE[:, 1:].isnan().all()  # none selects them


def test_with_a_single_layer_the_cost_is_the_difference_of_two_passes() -> None:
    """There a drop moves nobody else's logits."""
    model = tiny_model(len(VOCABULARY), num_layers=1, capacity_factor=0.5)
    result = drops_of(model)
    rows = LONGER.batches(BATCH_SIZE)
    with_drops_BS = torch.cat([whole(model, *batch, capacity_factor=0.5) for batch in rows])
    without_BS = whole(model, LONGER.ids_BS, LONGER.target_BS, capacity_factor=None)
    assert result.cost is not None and 0.1 < result.mean(0).mean < 0.9
    _, cost_BS, _ = costs(model, LONGER, BATCH_SIZE, 0.5)
    assert torch.allclose(cost_BS, with_drops_BS - without_BS, atol=1e-4)
    expected = (with_drops_BS - without_BS)[result.dropped_LBS[0]].mean().item()
    assert result.cost.mean == pytest.approx(expected, abs=1e-4) and abs(expected) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 2}, {"overflow": "passthrough"}, {"overflow": "reroute"}, {"drop_order": "random"},
     {"capacity_group": "sequence"}, {"position": "learned"}, {"shared_expert": True},
     {"dropout": 0.5, "jitter": 0.5, "expert_dropout": 0.5, "random_drop_rate": 0.5, "selection": "sample"}],
    ids=str,
)  # fmt: skip
def test_what_earlier_tokens_lose_is_not_attributed_to_a_token_that_is_kept(changes: dict[str, Any]) -> None:
    model = tiny_model(len(VOCABULARY), num_layers=3, capacity_factor=0.6, **changes)
    dropped_LBS, cost_BS, by_expert_LE = costs(model, PROBE, BATCH_SIZE, 0.6)
    has_slot_BS = ~dropped_LBS.any(dim=0)
    assert has_slot_BS.any() and not has_slot_BS.all()
    assert cost_BS[has_slot_BS].abs().max() < 1e-4
    assert cost_BS[~has_slot_BS].abs().max() > 1e-2
    assert 0.0 < by_expert_LE.nan_to_num(0.0).max() <= 1.0


def test_experts_that_give_nothing_cost_nothing_to_drop() -> None:
    model = tiny_model(len(VOCABULARY), capacity_factor=0.5)
    for layer in model.switch_layers:
        layer.experts.w_out_EFD.data.zero_()
    result = drops_of(model)
    assert result.cost is not None and result.cost.mean == pytest.approx(0.0, abs=1e-5)
    assert result.at_once[0] < 0.9


def test_a_model_that_drops_nothing_says_so() -> None:
    result = drops_of(tiny_model(len(VOCABULARY), capacity_factor=4.0))
    assert result.mean(0).mean == result.mean(1).mean == 0.0 and result.cost is None


def test_a_model_without_a_capacity_needs_a_given_one() -> None:
    model = tiny_model(len(VOCABULARY), capacity_factor=None)
    with pytest.raises(ValueError, match="give a capacity_factor"):
        drops_of(model)
    assert drops_of(model, capacity_factor=0.5).capacity_factor == 0.5


def test_random_drops_follow_from_the_seed_and_leave_model_and_random_state_alone() -> None:
    model = tiny_model(len(VOCABULARY), capacity_factor=0.5, drop_order="random")
    state, weights = torch.get_rng_state(), {name: x.clone() for name, x in model.state_dict().items()}
    first, again, other = drops_of(model), drops_of(model), drops_of(model, seed=1)
    assert torch.equal(first.dropped_LBS, again.dropped_LBS)
    assert not torch.equal(first.dropped_LBS, other.dropped_LBS)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())


# --- Planted differences, and none


def test_drops_of_the_hardest_fifth_are_detected() -> None:
    nll_BS = torch.rand(PROBE.ids_BS.shape, generator=torch.Generator().manual_seed(0))
    threshold = nll_BS.flatten().sort().values[int(0.8 * nll_BS.numel())]
    result = summarized((nll_BS >= threshold) & at_random(0.9, seed=3), nll_BS)
    assert result.by_difficulty_LQ[0].tolist() == pytest.approx([0, 0, 0, 0, 0.9], abs=0.05)
    assert result.hardest is not None and result.hardest.mean > 0.8 and result.hardest.resolved(5)


def test_drops_of_one_character_are_detected() -> None:
    result = summarized(PROBE.ids_BS == 5)
    assert result.by_character_LV[0, 5] == 1.0 and result.by_character_LV[0].nansum() == 1.0
    assert result.character[0].share == pytest.approx(1.0)
    assert result.character[0].beyond_chance(5)


def test_drops_at_random_have_no_favourites() -> None:
    nll_BS = torch.rand(PROBE.ids_BS.shape, generator=torch.Generator().manual_seed(1))
    result = [summarized(at_random(0.2, seed), nll_BS) for seed in range(30)]
    for compared in ([t.late_positions for t in result], [t.late_rows for t in result], [t.hardest for t in result]):
        assert sum(one is not None and one.resolved() for one in compared) <= 5
        assert sum(one is not None and one.resolved(5) for one in compared) <= 1
    assert sum(t.character[0].beyond_chance(1) for t in result) <= 5


def test_a_cost_is_distinguished_from_none() -> None:
    dropped_BS = at_random(0.3)
    noise_BS = torch.randn(PROBE.ids_BS.shape, generator=torch.Generator().manual_seed(2))
    costly, free = (summarized(dropped_BS, cost_BS=noise_BS + shift) for shift in (1.0, -noise_BS[dropped_BS].mean()))
    assert costly.cost is not None and 0.5 < (costly.cost.interval() or (0.0,))[0] < 1.0
    assert free.cost is not None and free.cost.mean == pytest.approx(0.0, abs=1e-6)
    assert free.comparisons == 5  # late positions and rows, the hardest, the cost, and the character of one layer
    assert [one.compared["loss added to a token by dropping it"] for one in (costly, free)] == [
        costly.cost, free.cost,
    ]  # fmt: skip
    assert costly.cost.resolved(5) and not free.cost.resolved(5)


# --- What was sampled independently


def test_rows_that_share_places_are_one_unit_and_rows_with_places_of_their_own_are_units() -> None:
    dropped_BS, shape = at_random(0.3, probe=LONGER), LONGER.ids_BS.shape
    cost_BS, nll_BS = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    batches, windows = (summarized(dropped_BS, nll_BS, cost_BS, shared=shared) for shared in (True, False))
    for name, of_windows in {"late_positions": 32, "late_rows": 16, "hardest": 31, "cost": 32}.items():
        assert (getattr(batches, name).count, getattr(windows, name).count) == (8, of_windows), name
        assert getattr(batches, name).mean == pytest.approx(getattr(windows, name).mean)
    values = [cost_BS[b : b + 4][dropped_BS[b : b + 4]] for b in range(0, 32, 4)]
    rest = [torch.cat([*values[:b], *values[b + 1 :]]).mean().item() for b in range(8)]
    error = (7 / 8 * sum((one - batches.cost.mean) ** 2 for one in rest)) ** 0.5 if batches.cost else 0.0
    assert batches.cost is not None and batches.cost.error == pytest.approx(error, rel=1e-4)
    assert batches.cost.freedom == pytest.approx(7.0, abs=0.1)
    assert (batches.character[0].beyond.count, windows.character[0].beyond.count) == (8, 32)


@pytest.mark.parametrize(("group", "rows", "unit"), [("batch", 32, "batch"), ("sequence", 16, "window")])
def test_as_many_windows_are_read_as_eight_batches_have_where_rows_share_places(
    group: str, rows: int, unit: str
) -> None:
    result = drops_of(tiny_model(len(VOCABULARY), capacity_factor=0.5, capacity_group=group))
    assert (result.dropped_LBS.shape[1], result.unit) == (rows, unit)
    assert result.cost is not None and result.cost.error is not None


def test_a_text_too_short_for_eight_batches_gives_no_interval_and_says_so() -> None:
    result = drops(tiny_model(len(VOCABULARY), capacity_factor=0.5), PROBE, batch_size=8)  # 54 windows are 6 batches
    assert result.cost is not None and result.cost == Estimate(result.cost.mean, 6)
    assert [one.error for one in result.compared.values() if one] == [None] * 4


def test_independent_layers_drop_together_as_often_as_the_product_of_their_shares() -> None:
    assert independent([0.5, 0.5]) == (0.25, 0.5, 0.25)
    assert independent([0.0, 1.0, 0.1]) == pytest.approx((0.0, 0.9, 0.1, 0.0))
