"""A model computes on a GPU what it does on a CPU: logits, losses, gradients, optimizer steps, sums over batches."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from gpu_device import DEVICE, FLOAT32, far
from small_models import batch, lm_of, module_of
from torch import Tensor

from switch_lm.measure.evaluation import evaluate
from switch_lm.measure.tallies import DropTally, ValidationTally
from switch_lm.model.losses import language_loss
from switch_lm.optim.base import build_optimizer
from switch_lm.optim.options import AdamWOptions, MuonOptions, OptimOptions
from switch_lm.routers.options import BalanceOptions
from switch_lm.routers.switch import SwitchRouter
from switch_lm.training.module import SwitchModule

pytestmark = pytest.mark.gpu
# A gradient has passed two blocks forward and backward: about 30 roundings by 2^-9 at most, which mostly cancel. Logits
# have half of them.
BF16 = 30 * 2**-9
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "two choices by choice": {"top_k": 2, "queue_order": "choice", "renormalize_gates": True},
    "dropless": {"capacity_factor": None},
    "by row, passed through": {"capacity_group": "sequence", "overflow": "passthrough", "capacity_factor": 0.5},
    "rerouted": {"overflow": "reroute", "capacity_factor": 1.0},
    "sign": {"balance": BalanceOptions("sign"), "shared_expert": True},
    "every second block": {"switch_every": 2, "position": "learned", "tie_embeddings": True, "activation": "gelu"},
    "dense": {"switch_every": 0},
    "all losses": {"z_loss": 0.01, "importance": 0.1, "alpha": 0.1},
}


def results(module: SwitchModule, device: torch.device, precision: str = "fp32") -> dict[str, Tensor]:
    """Logits, losses and gradients of one micro-batch, by name."""
    module = copy.deepcopy(module).to(device).train()
    ids, targets = (tensor.to(device) for tensor in batch())
    with torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext():
        losses, output = module.losses(ids, targets), module.model(ids)
    losses.total.backward()
    named: dict[str, Tensor | None] = {"total": losses.total, "language": losses.language, "z": losses.router_z}
    named |= {"importance": losses.importance, "logits": output.logits} | losses.routers
    named |= {f"gradient of {name}": weight.grad for name, weight in module.model.named_parameters()}
    named |= {f"load of layer {i}": routing.load_E for i, routing in enumerate(output.routings)}
    return {name: value for name, value in named.items() if value is not None}


def require_equal(here: dict[str, Tensor], there: dict[str, Tensor], within: float) -> None:
    assert here.keys() == there.keys()
    assert {name: far(here[name], there[name]) for name in here if not far(here[name], there[name]) < within} == {}


@pytest.mark.parametrize("kind", MODELS)
def test_logits_losses_and_gradients_are_equal_in_float32(kind: str) -> None:
    module = module_of(**MODELS[kind])
    require_equal(results(module, DEVICE), results(module, torch.device("cpu")), FLOAT32)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "dense"])
def test_in_bf16_they_are_near_where_the_experts_are_those_of_float32(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may tip a choice between two experts, so every router takes those that it took in float32."""
    module, chosen, real = module_of(**MODELS[kind]), list[Tensor](), SwitchRouter.select

    def noted(self: SwitchRouter, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        chosen.append(real(self, logits_TE, probs_TE))
        return chosen[-1]

    monkeypatch.setattr(SwitchRouter, "select", noted)
    there = results(module, torch.device("cpu"))
    again = itertools.cycle(chosen)
    monkeypatch.setattr(SwitchRouter, "select", lambda self, *_: next(again).to(DEVICE))
    here = results(module, DEVICE, "bf16")
    require_equal(here, there, BF16)
    assert far(here["logits"], there["logits"]) < BF16 / 2


@pytest.mark.parametrize("options", [MuonOptions(), AdamWOptions()], ids=lambda options: options.name)
def test_three_steps_from_equal_weights_and_gradients_move_equally_far(options: OptimOptions) -> None:
    """Muon multiplies small singular values, and their rounding, by up to 3.4445^5 = 485: 485 x 6e-8 = 3e-5."""
    start, moved = lm_of(20), list[dict[str, Tensor]]()
    for device in (DEVICE, torch.device("cpu")):
        model, random = copy.deepcopy(start).to(device), torch.Generator().manual_seed(2)
        optimizer = build_optimizer(model, options, precision="fp32")
        for _ in range(3):
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=random).to(device)
            optimizer.step()
        before = dict(start.named_parameters())
        moved.append({name: (weight.cpu() - before[name]).detach() for name, weight in model.named_parameters()})
    require_equal(moved[0], moved[1], FLOAT32)
    assert all(move.abs().max() > 0.0 for move in moved[0].values())


@pytest.mark.parametrize("factor", [0.5, None])
def test_sums_over_many_batches_are_equal(factor: float | None) -> None:
    model = lm_of(20, capacity_factor=factor)
    ids = torch.randint(20, (3001,), generator=torch.Generator().manual_seed(4))
    how: dict[str, Any] = {"context_length": 12, "batch_size": 8, "capacity_factor": factor, "precision": "fp32"}
    here, there = (evaluate(copy.deepcopy(model).to(device), ids, **how) for device in (DEVICE, torch.device("cpu")))
    assert here.loss == pytest.approx(there.loss, rel=1e-6)  # sums are in float64
    assert (here.dropped_per_layer, here.predictions) == (there.dropped_per_layer, there.predictions)
    tallies = []
    for device in (DEVICE, torch.device("cpu")):
        drops, validation, part = DropTally(2), ValidationTally(), copy.deepcopy(model).to(device).train()
        for window_BS in ids[:2990].view(-1, 10, 13).to(device):
            with torch.no_grad():
                output = part(window_BS[:, :-1])
            drops.add(output.routings)
            validation.add(language_loss(output.logits, window_BS[:, 1:]), 120, output.routings)
        drops.end_stretch()
        tallies.append((drops.state_dict(), validation))
    assert tallies[0][0] == tallies[1][0] and (tallies[0][0]["last_stretch"] > 0) == (factor is not None)
    (_, here_v), (_, there_v) = tallies
    assert here_v.loss == pytest.approx(there_v.loss, rel=1e-6)
    assert here_v.router_entropy == pytest.approx(there_v.router_entropy, rel=1e-6)
    assert here_v.load_max_over_mean == there_v.load_max_over_mean
