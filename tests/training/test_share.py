"""The share of the machine's matrix products that a run's steps reach: its rate, and when it is measured."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from some_steps import train_steps
from torch.utils.flop_counter import FlopCounterMode

from switch_lm.config.schema import Config
from switch_lm.measure import machine_speed
from switch_lm.training import result as result_module
from switch_lm.training.callbacks.clock import Clock
from switch_lm.training.start import train


@pytest.mark.parametrize(("of_a_call", "rate"), [([9.0, 0.1, 0.1, 0.2, 0.1, 0.3], 160), ([1.0, 0.5, 1.5], 16)])
def test_the_rate_is_the_median_of_five_products_or_of_those_in_a_second(
    of_a_call: list[float], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    multiply = Mock(side_effect=lambda: clock.append(clock[-1] + of_a_call[len(clock) - 1]))
    monkeypatch.setattr(machine_speed, "PRODUCT", 16e9)  # FLOPs of each call, of which the first warms up
    monkeypatch.setattr(machine_speed, "matmul", lambda dtype: multiply)
    monkeypatch.setattr("time.perf_counter", lambda: clock[-1])
    assert machine_speed.matmul_rate(torch.float32) == pytest.approx(rate * 1e9)
    assert multiply.call_count == len(of_a_call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_the_rate_has_its_type_and_size_and_draws_no_random_number(dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # nothing is computed
        out = machine_speed.matmul(dtype)()
    assert out.dtype == dtype and counter.get_total_flops() == machine_speed.PRODUCT == 2 * 2048**3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr(result_module, "SHARE_FROM_SECONDS", 0.0)
    monkeypatch.setattr(result_module, "matmul_rate", rate := Mock(return_value=1e10))
    return rate


@pytest.mark.parametrize(("precision", "word"), [("fp32", "float32"), ("bf16", "bf16")])
def test_a_run_states_the_share_that_its_steps_reach(
    precision: str, word: str, config: Config, rate: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    config.trainer.precision, config.trainer.accumulate, config.logger.progress = precision, 2, "lines"
    result = train(config)
    share = result["computation"]["useful_per_step"] * result["steps"] / result["training_seconds"] / 1e10
    assert (result["matmul_flops_per_second"], result["matmul_share"]) == (1e10, pytest.approx(share))
    rate.assert_called_once_with({"float32": torch.float32, "bf16": torch.bfloat16}[word])
    assert f"{100 * share:.0f}% of this machine's {word} matrix products;" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("rate")
def test_a_resumed_run_states_the_share_of_its_own_steps(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eight before may have been made on another machine: here they took an hour."""
    train_steps(config, 8)
    load = Clock.load_state_dict
    monkeypatch.setattr(Clock, "load_state_dict", lambda clock, state: load(clock, state | {"step_seconds": 3600.0}))
    result = train(replace(config, name=None, resume="auto"))
    per_second = result["computation"]["useful_per_step"] * 4 / (result["training_seconds"] - 3600)
    assert result["matmul_share"] == pytest.approx(per_second / 1e10)
