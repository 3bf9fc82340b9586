"""Costs that other implementations of mixtures of experts have had: host reads, memory, and lost precision.

Each test fails if its fault is introduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import EVERY_QUEUE, layer, short_run
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import TopKOptions
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Operations for which the host waits for a device: they read values, or their shapes depend on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal", "bincount")


class _DispatchedReads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.__name__.startswith("index.") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        self.count += by_mask or func.__name__.split(".")[0] in WAITS
        return func(*args, **kwargs or {})


class _PythonReads(TorchFunctionMode):
    """Counts the reads that never reach the dispatcher."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("tolist", "numpy", "__array__")
        return func(*args, **kwargs or {})


def host_reads(computation: Callable[[], object]) -> int:
    """How often the host waits in a computation."""
    dispatched, python = _DispatchedReads(), _PythonReads()  # type: ignore[no-untyped-call]
    with dispatched, python:
        computation()
    return dispatched.count + python.count


READS: list[Callable[[Tensor], object]] = [
    lambda x: x[0].item(),
    lambda x: x.tolist(),
    lambda x: float(x[1]),
    lambda x: bool(x[0] > 0),
    lambda x: x[x > 0],
    lambda x: x.nonzero(),
]


@pytest.mark.parametrize("read", READS)
def test_the_counter_counts_a_read(read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    assert host_reads(lambda: read(x)) == 1


def reads_of(module: SwitchFeedForward) -> int:
    """Reads in a forward and a backward pass in training, with the balance loss."""
    x_BSD = torch.randn(3, 16, 8, requires_grad=True)

    def pass_through() -> None:
        y_BSD, routing = module(x_BSD)
        (y_BSD.float().sum() + load_balancing_loss(routing)).backward()

    return host_reads(pass_through)


@pytest.mark.parametrize("rule", EVERY_QUEUE, ids=str)
@pytest.mark.parametrize("num_experts", [2, 16])
def test_a_layer_with_a_capacity_never_makes_the_host_wait_and_a_dropless_one_at_most_once(
    num_experts: int, rule: TopKOptions
) -> None:
    noisy = replace(rule, jitter=0.1, input_dropout=0.1)
    assert reads_of(layer(num_experts, noisy, capacity_factor=1.25, expert_dropout=0.1)) == 0
    assert reads_of(layer(num_experts, noisy, capacity_factor=None, expert_dropout=0.1)) <= 1


def test_a_training_step_makes_the_host_wait_as_often_for_three_layers_as_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout inside the experts, which computes as on a GPU; without it, a CPU reads its loads."""
    config, counts = short_run(tmp_path), []
    real = SwitchModule.training_step

    def counted(self: SwitchModule, batch: Any, batch_idx: int) -> Any:
        outputs: list[Any] = []
        counts.append(host_reads(lambda: outputs.append(real(self, batch, batch_idx))))
        return outputs[0]

    monkeypatch.setattr(SwitchModule, "training_step", counted)
    for num_layers in (1, 3):
        model = replace(config.model, num_layers=num_layers, num_experts=4 * num_layers, expert_dropout=0.1)
        once = replace(config.trainer, max_steps=1)
        quiet = replace(config.logger, log_every=10)
        train(replace(config, name=f"layers_{num_layers}", model=model, trainer=once, logger=quiet))
    assert counts[0] == counts[1] <= 2


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is created."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return made


def largest_of(num_tokens: int, rule: TopKOptions, capacity_factor: float | None) -> int:
    x_BSD = torch.randn(4, num_tokens // 4, 8, requires_grad=True)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        y_BSD, routing = layer(8, rule, capacity_factor=capacity_factor)(x_BSD)
        (y_BSD.sum() + load_balancing_loss(routing)).backward()
    return largest.numel


@pytest.mark.parametrize("rule", EVERY_QUEUE, ids=str)
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_no_tensor_grows_with_the_square_of_the_tokens(rule: TopKOptions, capacity_factor: float | None) -> None:
    """A one-hot dispatch has tokens x experts x capacity = tokens x tokens x factor elements."""
    once, twice = (largest_of(num_tokens, rule, capacity_factor) for num_tokens in (512, 1024))
    assert once <= 512 * rule.top_k * 12 < 512 * 8 * 64  # choices x the widest of D, F and E; not T x E x C
    assert twice <= 2.1 * once  # only kept choices are multiplied, and how many are kept depends on the weights


@pytest.mark.parametrize("rule", [*EVERY_QUEUE, TopKOptions(gate_scale="straight_through", top_k=2)], ids=str)
@pytest.mark.parametrize("capacity_factor", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_layer_trains_in_bf16_and_routes_in_float32(
    rule: TopKOptions, capacity_factor: float | None, dtype: torch.dtype
) -> None:
    module = layer(rule=replace(rule, jitter=0.1), capacity_factor=capacity_factor, shared_expert=True)
    x_BSD = torch.randn(2, 16, 8, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_BSD, routing = module(x_BSD)
        loss = y_BSD.float().square().mean() + load_balancing_loss(routing)
    loss.backward()
    assert y_BSD.dtype == torch.bfloat16
    assert routing.logits_TE.dtype == routing.probs_TE.dtype == routing.gate_TK.dtype == torch.float32
    for tensor in (x_BSD, *module.parameters()):
        assert tensor.grad is not None and tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all() and (tensor.grad != 0).any()
