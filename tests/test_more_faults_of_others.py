"""Faults 7 to 12 of twelve seen in other implementations; each test fails if its fault is put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import EVERY_QUEUE, batch, layer, model_of, module_of, short_run
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from switch_lm.experts import FeedForward
from switch_lm.ledger import ledger
from switch_lm.losses import language_loss, load_balancing_loss, summed
from switch_lm.module import SwitchModule
from switch_lm.routing import RoutingRule, route
from switch_lm.settings import Config
from switch_lm.switch import SwitchFeedForward
from switch_lm.train import train


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return short_run(tmp_path)


# 7


def test_7_two_layers_that_are_each_unbalanced_do_not_make_a_balanced_one() -> None:
    sure = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    layers = [route(logits.expand(10, 2), capacity=None) for logits in sure]
    assert float(summed(load_balancing_loss, layers)) == pytest.approx(4.0)  # E + E; as one heap of tokens it were 1


def test_7_the_balance_loss_of_a_model_is_that_of_its_layers_added() -> None:
    ids, targets = batch()
    losses = module_of(num_layers=3).losses(ids, targets)
    f_LE = torch.stack([routing.load_E / 48 for routing in losses.routings])
    P_LE = torch.stack([routing.probs_TE.mean(0) for routing in losses.routings])
    assert losses.balance.item() == pytest.approx(4 * (f_LE * P_LE).sum().item())
    of_one_heap = 4 * (f_LE.mean(0) * P_LE.mean(0)).sum().item()
    assert abs(3 * of_one_heap - losses.balance.item()) > 1e-2


# 8


# What would make the host wait for a device: values read, and shapes that hang on values.
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
    """The reads that never reach the dispatcher."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("tolist", "numpy", "__array__")
        return func(*args, **kwargs or {})


def host_reads(computation: Callable[[], object]) -> int:
    """How often a computation makes the host wait."""
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
def test_8_the_counter_sees_a_read(read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    assert host_reads(lambda: read(x)) == 1


def reads_of(module: SwitchFeedForward) -> int:
    """Of a forward and a backward pass in training, the balance loss included."""
    x_BSD = torch.randn(3, 16, 8, requires_grad=True)

    def pass_through() -> None:
        y_BSD, routing = module(x_BSD)
        (y_BSD.float().sum() + load_balancing_loss(routing)).backward()

    return host_reads(pass_through)


@pytest.mark.parametrize("rule", EVERY_QUEUE, ids=str)
@pytest.mark.parametrize("num_experts", [2, 16])
def test_8_a_padded_layer_reads_nothing_back_and_a_dropless_one_once(num_experts: int, rule: RoutingRule) -> None:
    noise = {"router_jitter": 0.1, "router_input_dropout": 0.1, "expert_dropout": 0.1}
    assert reads_of(layer(num_experts, rule, capacity_factor=1.25, **noise)) == 0
    assert reads_of(layer(num_experts, rule, capacity_factor=None, **noise)) <= 1


def test_8_a_training_step_reads_back_as_much_for_three_layers_as_for_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    real = SwitchModule.training_step

    def counted(self: SwitchModule, batch: Any, batch_idx: int) -> Any:
        losses: list[Tensor] = []
        counts.append(host_reads(lambda: losses.append(real(self, batch, batch_idx))))
        return losses[0]

    monkeypatch.setattr(SwitchModule, "training_step", counted)
    for num_layers in (1, 3):
        model = replace(config.model, num_layers=num_layers, num_experts=4 * num_layers)
        once = replace(config.trainer, max_steps=1)
        quiet = replace(config.logger, log_every=10)
        train(replace(config, name=f"layers_{num_layers}", model=model, trainer=once, logger=quiet))
    assert counts[0] == counts[1] <= 2


# 9


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return made


def largest_of(num_tokens: int, rule: RoutingRule, capacity_factor: float | None) -> int:
    x_BSD = torch.randn(4, num_tokens // 4, 8, requires_grad=True)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        y_BSD, routing = layer(8, rule, capacity_factor=capacity_factor)(x_BSD)
        (y_BSD.sum() + load_balancing_loss(routing)).backward()
    return largest.numel


@pytest.mark.parametrize("rule", EVERY_QUEUE, ids=str)
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_9_no_tensor_grows_with_the_square_of_the_tokens(rule: RoutingRule, capacity_factor: float | None) -> None:
    """Tokens x experts x capacity is tokens x tokens x factor, whatever the number of experts."""
    once, twice = (largest_of(num_tokens, rule, capacity_factor) for num_tokens in (512, 1024))
    assert once <= 512 * rule.top_k * 12 < 512 * 8 * 64  # choices x the widest of D, F and E; not T x E x C
    assert twice <= 2 * once


# 10


def test_10_experts_that_a_token_does_not_meet_are_no_active_parameters() -> None:
    few, many = model_of(num_experts=4), model_of(num_experts=64)
    routers = 2 * 16 * (64 - 4)
    experts = 2 * (64 - 4) * 2 * 16 * 24
    assert many.num_active_params(11) - few.num_active_params(11) == routers
    assert many.num_params(11) - few.num_params(11) == routers + experts
    second_choice = replace(few, top_k=2).num_active_params(11) - few.num_active_params(11)
    assert second_choice == 2 * 2 * 16 * 24


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (4, {"capacity_factor": None}),
        (4, {"capacity_factor": None, "top_k": 2}),
        (4, {"capacity_factor": 1.25}),
        (4, {"capacity_factor": 2.0, "num_experts": 16}),
        (4, {"capacity_factor": 2.5, "top_k": 2, "shared_expert": True}),
        (3, {"capacity_factor": 1.0, "num_experts": 7}),  # 7 x 6 places for 36 tokens
        (3, {"capacity_factor": 1.0, "num_experts": 7, "capacity_group": "sequence"}),  # 7 x 2 for each row of 12
    ],
)
def test_10_the_computation_stated_is_the_one_done_empty_places_included(rows: int, changes: dict[str, Any]) -> None:
    config = model_of(**changes, num_layers=1)
    rule = config.rule
    switch = layer(config.num_experts, rule, d_model=16, d_ff=24,
                   capacity_factor=config.capacity_factor, shared_expert=config.shared_expert)  # fmt: skip
    x_BSD = torch.randn(rows, config.context_length, 16)
    num_tokens = rows * config.context_length
    done = []
    for module in (switch, FeedForward(d_model=16, d_ff=24, activation="relu")):
        with FlopCounterMode(display=False) as counter:
            module(x_BSD)
        done.append(counter.get_total_flops())
    stated = [ledger(c, vocab_size=11, batch_size=rows).forward for c in (config, replace(config, switch_every=0))]
    assert (done[0] - done[1]) / num_tokens == pytest.approx(stated[0] - stated[1])


# 11


@pytest.mark.parametrize("rule", [*EVERY_QUEUE, RoutingRule(gate_scale="straight_through", top_k=2)], ids=str)
@pytest.mark.parametrize("capacity_factor", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_11_under_autocast_a_layer_runs_forwards_and_backwards_and_routes_in_float32(
    rule: RoutingRule, capacity_factor: float | None, dtype: torch.dtype
) -> None:
    module = layer(rule=rule, capacity_factor=capacity_factor, router_jitter=0.1, shared_expert=True)
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


# 12


def test_12_the_balance_loss_of_a_whole_is_not_the_mean_of_that_of_its_parts() -> None:
    logits_TE = torch.tensor([[30.0, 0.0]] * 10 + [[0.0, 30.0]] * 10)
    parts = [float(load_balancing_loss(route(part, capacity=None))) for part in logits_TE.chunk(2)]
    assert parts == pytest.approx([2.0, 2.0])
    assert float(load_balancing_loss(route(logits_TE, capacity=None))) == pytest.approx(1.0)


class GradientSeen(BaseException):
    """Ends a run; nothing in the program catches it."""


def test_12_accumulation_balances_each_micro_batch(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step is the mean over micro-batches of that of language loss + alpha E f.P of that part.

    That is f.P per router call, as the paper's appendix F has it per core; f and P of the whole step differ.
    """
    batches, modules = [], []
    real = SwitchModule.training_step

    def noted(self: SwitchModule, batch: Any, batch_idx: int) -> Any:
        batches.append(batch)
        return real(self, batch, batch_idx)

    def seen(self: SwitchModule, *args: Any, **kwargs: Any) -> None:
        modules.append(self)
        raise GradientSeen

    monkeypatch.setattr(SwitchModule, "training_step", noted)
    monkeypatch.setattr(SwitchModule, "configure_gradient_clipping", seen)
    dropless = replace(config.model, capacity_factor=None)  # so that a capacity does not tell part and whole apart
    with pytest.raises(GradientSeen):
        train(replace(config, model=dropless, alpha=10.0, trainer=replace(config.trainer, accumulate=2)))
    (module,), ids, targets = modules, [b.ids for b in batches], [b.targets for b in batches]
    assert len(ids) == 2

    def router_gradient(ids: Tensor, targets: Tensor) -> Tensor:
        output = module.model(ids)
        balance = sum(4 * (r.load_E / r.load_E.sum() * r.probs_TE.mean(0)).sum() for r in output.routings)
        loss = language_loss(output.logits, targets) + 10.0 * balance
        return torch.autograd.grad(loss, router)[0]

    router = module.model.get_parameter("blocks.0.ffn.w_router_DE")
    mean_of_parts = torch.stack([router_gradient(*part) for part in zip(ids, targets, strict=True)]).mean(0)
    of_the_whole = router_gradient(torch.cat(ids), torch.cat(targets))
    assert router.grad is not None
    assert torch.allclose(router.grad, mean_of_parts, atol=1e-5)
    assert not torch.allclose(router.grad, of_the_whole, atol=1e-3)
