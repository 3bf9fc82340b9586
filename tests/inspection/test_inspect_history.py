"""Over time: routes that stop changing, experts that specialise at a known step, and runs in which neither happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT, checkpoint_of, tiny_model
from torch import Tensor

from switch_lm.inspection.history import History, Moment, compared, history
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.reading import Probe
from switch_lm.storage import checkpoint
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
IDS = torch.randint(len(VOCABULARY), (3000,), generator=torch.Generator().manual_seed(0))
PROBE = Probe.of(IDS, context_length=16)


def at_random(seed: int) -> Tensor:
    return torch.randint(4, (1, *PROBE.ids_BS.shape), generator=torch.Generator().manual_seed(seed))


def by_character() -> Tensor:
    return PROBE.ids_BS[None] % 4


def run_of(*expert_LBS: Tensor) -> History:
    """Checkpoints at steps 100, 200, ..., given in another order."""
    moments = [Moment(100 * (n + 1), one, num_experts=4, loss=2.0) for n, one in enumerate(expert_LBS)]
    return compared(moments[::-1], PROBE)


def write(folder: Path, name: str, model: SwitchLM, step: int) -> None:
    content: dict[str, Any] = checkpoint_of(model, TEXT, "fp32") | {"global_step": step}
    checkpoint.write(content, folder / "checkpoints" / name)


def trained(steps: int) -> SwitchLM:
    """Its first router changes at every step until the third."""
    model = tiny_model(len(VOCABULARY))
    w_DE = model.router_parameters()[0].data
    w_DE += 3 * torch.randn(w_DE.shape, generator=torch.Generator().manual_seed(min(steps, 3)))
    return model


# --- Planted in choices


def test_routes_that_stop_changing_are_reported_to_stop() -> None:
    result = run_of(at_random(0), at_random(1), by_character(), by_character())
    shares = [layers[0].share for layers in result.since_before]
    assert shares[:2] == pytest.approx([0.75, 0.75], abs=0.05) and shares[2] == 0.0
    assert [layers[0].share for layers in result.to_last][2:] == [0.0, 0.0]


def test_the_step_at_which_experts_specialised_is_found() -> None:
    result = run_of(at_random(0), at_random(1), by_character(), by_character())
    assert result.specialised_at(0) == 300
    assert result.character[0][0].share < 0.1 and result.character[-1][0].share == pytest.approx(1.0)


def test_experts_that_forget_and_learn_again_specialised_the_second_time() -> None:
    assert run_of(by_character(), at_random(0), by_character()).specialised_at(0) == 300
    assert run_of(by_character(), by_character()).specialised_at(0) == 100


def test_a_run_that_never_specialised_says_so() -> None:
    runs = [run_of(at_random(3 * seed), at_random(3 * seed + 1), at_random(3 * seed + 2)) for seed in range(20)]
    never = [one for one in runs if one.specialised_at(0) is None]
    assert len(never) >= 16
    for one in never:
        last = one.since_before[-1][0]
        assert last.share == pytest.approx(last.chance, abs=0.05)  # as for unrelated routers


def test_chance_depends_on_the_loads() -> None:
    """Two routers that send nine tokens in ten to one expert agree often by themselves."""
    one, other = (
        at_random(seed).clamp(max=0) + (at_random(seed + 5) == 0) * (at_random(seed + 9) < 2) for seed in (0, 1)
    )
    busy = one.double().mean().item(), other.double().mean().item()
    change = run_of(one, other).since_before[0][0]
    assert change.chance == pytest.approx(busy[0] * (1 - busy[1]) + busy[1] * (1 - busy[0]))
    assert change.share == pytest.approx(change.chance, abs=0.03)
    lost_BS = PROBE.ids_BS == 5  # have no expert any more
    change = run_of(by_character(), by_character().masked_fill(lost_BS, 4)).since_before[0][0]
    assert change.share == pytest.approx(lost_BS.double().mean().item()) and change.share < change.chance


def test_a_single_checkpoint_shows_no_change() -> None:
    result = run_of(by_character())
    assert result.since_before == () and result.steps == (100,)


# --- From files


def test_the_checkpoints_of_a_run_are_read_in_order_of_step_and_each_step_once(tmp_path: Path) -> None:
    for name, step in {"step_000002.ckpt": 2, "step_000010.ckpt": 10, "best.ckpt": 2, "last.ckpt": 12}.items():
        write(tmp_path, name, trained(step), step)
    result = history(tmp_path, PROBE)
    assert result.steps == (2, 10, 12) and result.skipped == ()
    first, second = result.since_before
    assert first[0].share > 0.05 and second[0].share == 0.0  # none after the third step
    assert result.loss[1] == result.loss[2] != result.loss[0]


def test_a_damaged_checkpoint_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "step_000001.ckpt", trained(1), 1)
    write(tmp_path, "last.ckpt", trained(2), 2)
    (tmp_path / "checkpoints" / "step_000001.ckpt").write_bytes(b"not a checkpoint")
    result = history(tmp_path, PROBE)
    assert result.steps == (2,) and "step_000001.ckpt" in result.skipped[0]


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        history(tmp_path, PROBE)


def test_a_dense_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "last.ckpt", tiny_model(len(VOCABULARY), switch_every=0), 5)
    with pytest.raises(ValueError, match="a dense model routes nothing"):
        history(tmp_path, PROBE)
