"""A Switch layer with any router gives on a GPU what it gives on a CPU: output, routing and gradients.

Routers compute in float32 whatever autocast says, and here get the same float32 input: so the experts are equal even
where their products are in bf16. `MARGIN` holds that no choice depends on a rounding.
"""

from __future__ import annotations

import copy
import sys
import types
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import extension_package
import pytest
import torch
from gpu_device import DEVICE, FLOAT32, IS_GPU, far
from other_routers import ChosenOptions
from small_models import EVERY_QUEUE
from torch import Tensor

from switch_lm.config.families import FAMILIES, load
from switch_lm.model.experts import Experts
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions, TopKOptions

pytestmark = pytest.mark.gpu
# Each of x, both weights, the hidden values (whose square doubles it), the square, the output, gate and product
# is rounded by 2^-9 at most. A share of the largest value, since small ones are sums that cancel.
BF16 = 9 * 2**-9
MARGIN = 1e-5
ROWS, POSITIONS, V = 6, 16, 11

Case = tuple[RouterOptions, dict[str, Any]]
SIGN = BalanceOptions("sign", rate=0.1)
CASES: dict[str, Case] = {
    **{f"top {k}, capacity {factor}": (TopKOptions(top_k=k), {"capacity_factor": factor})
       for k in (1, 2) for factor in (1.0, 1.25, 2.0, 0.5, None)},
    **{f"{one.drop_order}, {one.queue_order}, {one.capacity_group}, {one.overflow}": (one, {"capacity_factor": 1.0})
       for one in (*EVERY_QUEUE, TopKOptions(top_k=2, capacity_group="sequence", overflow="passthrough"))
       if one.drop_order != "random"},
    "sizes that are no multiples of 8": (SwitchOptions(), {"d_model": 10, "d_ff": 18, "capacity_factor": None}),
    "and a capacity": (SwitchOptions(), {"d_model": 10, "d_ff": 18}),
    "an expert with no token": (SwitchOptions(), {"capacity_factor": None, "offset": [0.0, 0.0, -9.0, 0.0]}),
    "an expert with no token, a capacity": (SwitchOptions(), {"offset": [-9.0, 0.0, 0.0, 0.0]}),
    "all to one": (SwitchOptions(), {"capacity_factor": None, "offset": [0.0, 9.0, 0.0, 0.0]}),
    "all to one, a capacity": (SwitchOptions(), {"offset": [0.0, 9.0, 0.0, 0.0]}),
    "a bias": (SwitchOptions(), {"balance": SIGN}),
    "a bias, two choices, dropless": (TopKOptions(top_k=2, renormalize_gates=True),
                                      {"balance": SIGN, "capacity_factor": None}),
    "straight through, a shared expert": (SwitchOptions(gate_scale="straight_through"), {"shared_expert": True}),
    "a list": (ChosenOptions(), {}),
    "a list with unused entries": (ChosenOptions(), {"capacity_factor": None}),
    **{f"router={name}": (family.options(), {"capacity_factor": 1.0})
       for name, family in FAMILIES["router"].items() if isinstance(family.code, str)},
}  # fmt: skip


def made(rule: RouterOptions, options: dict[str, Any]) -> tuple[SwitchFeedForward, Tensor]:
    """A layer in training without noise, and its input, whose first element is 1."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "num_experts": 4} | {k: v for k, v in options.items() if k.startswith("d_")}
    others = {k: v for k, v in options.items() if k not in (*sizes, "balance", "offset")}
    rule.jitter = 0.0
    router = load("router", rule.name)(rule, d_model=sizes["d_model"], num_experts=4, balance=options.get("balance"))
    router.prepare(torch.ones(V, dtype=torch.int64))
    made = SwitchFeedForward(router=router, activation="relu_squared", init_scale=1.0, **sizes, **others)
    made.train(not router.promise(training=True, limited=True).draws)  # devices draw in ways of their own
    x_BSD = torch.randn(ROWS, POSITIONS, sizes["d_model"])
    x_BSD[..., 0] = 1.0
    if "offset" in options:
        router.w_DE.data[0] = torch.tensor(options["offset"])
    if router.bias_E is not None:
        router.bias_E[:] = torch.tensor([0.2, -0.1, 0.05, 0.0])
    return made, x_BSD


def results(layer: SwitchFeedForward, x_BSD: Tensor, precision: str) -> dict[str, Tensor]:
    """Everything that the layer gives, by name, after a backward pass and what its router learns in a step."""
    device = x_BSD.device
    x_BSD = x_BSD.clone().requires_grad_()
    ids_BS = torch.arange(ROWS * POSITIONS, device=device).view(ROWS, POSITIONS) ** 2 % V
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        y_BSD, routing = layer(x_BSD, ids_BS=ids_BS, position_S=torch.arange(POSITIONS, device=device))
    weight_BSD = torch.randn(y_BSD.shape, generator=torch.Generator().manual_seed(1)).to(device)
    loss = (y_BSD.float() * weight_BSD).mean() + 0.1 * load_balancing_loss(routing)
    loss.backward()
    layer.router.after_step([routing.detached()])
    named = {field.name: getattr(routing, field.name) for field in fields(routing)} | {"y": y_BSD, "x": x_BSD.grad}
    named |= {f"gradient of {name}": weight.grad for name, weight in layer.named_parameters()}
    named |= dict(layer.named_buffers())
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def require_equal(layer: SwitchFeedForward, x_BSD: Tensor, precision: str) -> None:
    """What the layer gives on the device, against the CPU in float32."""
    there = results(copy.deepcopy(layer), x_BSD, "fp32")
    if layer.router.has_weights:
        bias_E = layer.router.bias_E
        score_TE = there["logits_TE"] if bias_E is None else there["scores_TE"] + bias_E
        assert score_TE.sort(dim=1).values.diff(dim=1).min() > MARGIN
    here = results(copy.deepcopy(layer).to(DEVICE), x_BSD.to(DEVICE), precision)
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert value.device.type == DEVICE.type, name
        if not value.is_floating_point():
            assert torch.equal(value.cpu(), there[name]), name
        else:
            within = BF16 if precision == "bf16" else FLOAT32
            assert far(value, there[name]) < within, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_gives_the_same(case: str, precision: str) -> None:
    require_equal(*made(*CASES[case]), precision)


def test_the_router_of_a_plugin_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = types.ModuleType(extension_package.NAME)
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setitem(FAMILIES, "router", dict(FAMILIES["router"]))
    exec(extension_package.ROUTER, vars(plugin))
    require_equal(*made(plugin.Options(), {}), "fp32")


def test_the_gradient_of_an_experts_matrix_is_not_rounded_to_bf16() -> None:
    torch.manual_seed(0)
    layer = Experts(num_experts=3, d_model=16, d_ff=8, activation="relu")
    x_ECD, w_EDF, grad_ECD = (torch.randint(-3, 4, shape).float() for shape in ((3, 40, 16), (3, 16, 8), (3, 40, 16)))
    layer.w_in_EDF.data, layer.w_out_EFD.data = w_EDF, w_EDF.mT.contiguous()
    expected = torch.bmm(torch.bmm(x_ECD, w_EDF).relu().mT, grad_ECD)  # whole numbers of up to 12 bits: exact
    layer.to(DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        layer.padded(x_ECD.to(DEVICE)).backward(grad_ECD.to(DEVICE, torch.bfloat16))
    assert layer.w_out_EFD.grad is not None
    assert far(layer.w_out_EFD.grad, expected) <= (0.0 if IS_GPU else BF16)
