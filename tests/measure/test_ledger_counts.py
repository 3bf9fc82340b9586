"""The ledger states what torch counts, product by product: for every preset, option and optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import CONFIGS, ROWS, batch, by_module, composed, in_bf16, module_of, stated
from small_models import parts_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from switch_lm.config.schema import Config
from switch_lm.measure.ledger import LEFT_OUT, optimizer_flops, run_ledger
from switch_lm.model import cached
from switch_lm.model.config import ModelConfig
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.optim.base import build_optimizer
from switch_lm.optim.options import AdamWOptions, MuonOptions, OptimOptions, Shape
from switch_lm.routers.options import BalanceOptions

PRESETS = [  # and no variant that only chooses a router or a balance, which are presets themselves
    f"{group}={path.stem}"
    for group in ("router", "balance", "model", "experiment", "variant")
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if path.stem != "base"
    and not (group == "variant" and re.search(r"override /(router: (?!topk)|balance)", path.read_text()))
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 2, "capacity_factor": 2.5},
    {"top_k": 2, "capacity_factor": 2.5, "shared_expert": True},
    {"top_k": 2, "capacity_factor": None},
    {"top_k": 2, "queue_order": "choice", "renormalize_gates": True},
    {"top_k": 4, "capacity_factor": None},
    {"num_experts": 7, "capacity_factor": 1.0},  # 7 x 6 slots for 36 tokens
    {"num_experts": 16, "capacity_factor": 2.0},
    {"num_experts": 7, "capacity_factor": 1.0, "capacity_group": "sequence"},  # 7 x 2 for each row of 12
    {"switch_every": 2, "num_layers": 3},
    {"switch_every": 0},
    {"switch_layers": [0, 2], "num_layers": 3},
    {"shared_expert": True},
    {"tie_embeddings": True, "position": "learned"},
    {"position": "none", "activation": "gelu"},
    {"capacity_factor": None},
    {"capacity_factor": None, "random_drop_rate": 0.4},
    {"random_drop_rate": 0.4},
    {"capacity_factor": 0.5, "eval_capacity_factor": 2.0},
    {"capacity_factor": 0.01},  # one slot per expert
    {"capacity_factor": 9.0},  # an expert has no more slots than there are tokens
    {"num_experts": 1},
    {"num_experts": 1, "capacity_factor": 0.5},
    {"overflow": "reroute", "capacity_factor": 0.5},
    {"overflow": "passthrough", "capacity_factor": 0.5},
    {"drop_order": "random", "selection": "sample", "gate_scale": "straight_through"},
    {"drop_order": "probability", "balance": BalanceOptions(name="sign")},
    {"dropout": 0.3, "jitter": 0.3, "input_dropout": 0.3, "expert_dropout": 0.3},
    {"d_ff": 16},
    {"d_ff": 8, "num_heads": 4},
]
IS_A_PRODUCT = re.compile(
    r"mm(_|$)|mv(_|$)|matmul|linear|dot|einsum|conv|attention|outer|inner|(^|_)ger|addr|cdist|kron|lstm|gru|rnn|matrix_"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check_pass(config: Config, *, training: bool) -> None:
    """Both passes are exactly as stated, and so is the forward pass of each attention, feed-forward and head."""
    module, model = module_of(config, training=training), config.model
    ids, targets = batch(config)
    with FlopCounterMode(display=False) as forward, in_bf16():
        losses = module.losses(ids, targets)
    with FlopCounterMode(display=False) as backward:
        losses.total.backward()
    tokens, varies = ids.numel(), any(routing.used_N is not None for routing in losses.routings)
    selected_L = [int(routing.num_assignments) / tokens for routing in losses.routings] if varies else None
    work = stated(config, training=training, selected_L=selected_L)
    assert forward.get_total_flops() == round(work.forward * tokens)
    assert backward.get_total_flops() == round(work.backward * tokens)
    later = len(work.layers) * ROWS * sum(range(ids.shape[1])) * 2 * 2 * model.d_model  # positions, which are masked
    both = forward.get_total_flops() + backward.get_total_flops()
    assert work.useful_per_step == pytest.approx(both - 3 * (work.total.padded * tokens + later))
    counted = by_module(forward)
    assert counted["head"] == round(work.head * tokens)
    for block, layer in enumerate(work.layers):
        ffn = layer.executed - layer.attention
        assert counted[f"blocks.{block}.attention"] == round(layer.attention * tokens)
        assert counted[f"blocks.{block}.ffn"] == round(ffn * tokens)
        if model.is_switch(block) and model.shared_expert:
            assert counted[f"blocks.{block}.ffn.shared"] == round(layer.feed_forward * tokens)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_computes_what_is_stated(preset: str, training: bool) -> None:
    config = composed(preset)
    small = replace(config.model, num_layers=max(2, config.model.switch_every), context_length=16)
    check_pass(replace(config, model=small), training=training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_computes_what_is_stated(options: dict[str, Any], training: bool) -> None:
    check_pass(Config(**parts_of(**options), z_loss=0.1, importance=0.1), training=training)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_in_float32_a_cpu_multiplies_only_kept_choices(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "MOST_PADDING", 0)
    config = Config(**parts_of(**{key: value for key, value in options.items() if key != "expert_dropout"}))
    module, (ids, _) = module_of(config), batch(config)
    with FlopCounterMode(display=False) as counter:
        routings = module.model(ids).routings
    counted, work, model = by_module(counter), stated(config), config.model
    kept = dict(zip(model.switch_blocks, (int(routing.kept_N.sum()) for routing in routings), strict=True))
    for block, layer in enumerate(work.layers):
        of_experts = kept.get(block, 0) * 4 * model.d_model * model.d_ff
        assert counted[f"blocks.{block}.ffn"] == round((layer.feed_forward + layer.router) * ids.numel()) + of_experts


def test_the_router_computes_what_is_stated() -> None:
    config = Config(**parts_of(num_experts=7))
    layer = next(part for part in module_of(config).modules() if isinstance(part, SwitchFeedForward))
    with FlopCounterMode(display=False) as counter:
        layer.router(torch.randn(36, 16))
    assert counter.get_total_flops() == stated(config).layers[0].router * 36 == 2 * 36 * 16 * 7


@pytest.mark.parametrize("capacity_factor", [None, 0.5, 3.0])
def test_another_capacity_and_shorter_rows_compute_what_is_stated(capacity_factor: float | None) -> None:
    config = Config(**parts_of())
    with FlopCounterMode(display=False) as counter, in_bf16():
        module_of(config).model(batch(config)[0][:, :7], capacity_factor=capacity_factor)
    work = stated(config, context=7, capacity_factor=capacity_factor)
    assert work.tokens == ROWS * 7
    assert counter.get_total_flops() == round(work.forward * work.tokens)


# The optimizer


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("d_ff", [8, 16, 24], ids=["narrow", "square", "wide"])
@pytest.mark.parametrize("options", [{}, {"shared_expert": True}, {"switch_every": 2, "num_layers": 3}], ids=str)
def test_an_optimizer_step_computes_what_is_stated(name: str, d_ff: int, options: dict[str, Any]) -> None:
    optim = MuonOptions(expert_update_every=3) if name == "muon" else AdamWOptions()
    config = Config(**parts_of(**options, d_ff=d_ff), optim=optim)
    counted = optimizer_step(config)
    assert counted == pytest.approx(optimizer_flops(config.model, optim), rel=1e-12)
    assert (counted > 0) == (name == "muon")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_optimizer_computes_what_is_stated(preset: str) -> None:
    config = composed(preset)
    small = replace(config.model, d_model=32, d_ff=config.model.d_ff // 4, num_layers=2)
    assert optimizer_step(replace(config, model=small)) == optimizer_flops(small, config.optim)


def optimizer_step(config: Config) -> float:
    """FLOPs per step of the optimizer: the mean over as many steps as it takes to update each stack of experts."""
    module = module_of(config)
    optimizer = build_optimizer(module.model, config.optim, precision="fp32")
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optim = config.optim
    steps = optim.steps_between_moves(config.model.num_experts) if isinstance(optim, MuonOptions) else 1
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            optimizer.step()
    return counter.get_total_flops() / steps


def test_one_matrix_costs_muon_four_products_with_it_and_fourteen_of_its_shorter_side() -> None:
    model = ModelConfig(num_layers=1, switch_every=0, d_model=4, d_ff=10)
    of_sides = {(12, 4): 1, (4, 4): 1, (4, 10): 2}  # queries, keys and values; output; the feed-forward's
    products = sum(
        number * (4 * min(a, b) ** 2 * max(a, b) + 14 * min(a, b) ** 3) for (a, b), number in of_sides.items()
    )
    assert optimizer_flops(model, MuonOptions()) == 2 * products


@pytest.mark.parametrize("options", [{}, {"shared_expert": True}, {"switch_every": 2, "num_layers": 3}], ids=str)
def test_an_optimizer_is_asked_for_its_cost_with_the_shapes_of_the_hidden_matrices(options: dict[str, Any]) -> None:
    asked: list[Shape] = []

    class Asked(OptimOptions):
        def flops_per_step(self, shapes: Iterable[Shape]) -> float:
            asked.extend(shapes)
            return 7.0

    config = Config(**parts_of(**options), optim=Asked())
    assert run_ledger(config, vocab_size=5).optimizer_per_step == 7.0
    assert asked == [tuple(matrix.shape) for matrix in module_of(config).model.hidden_matrices()]


# Nothing is left out of the count


class Seen(TorchDispatchMode):
    """Records the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.add(func.overloadpacket)
        return func(*args, **kwargs or {})

    @property
    def products(self) -> set[str]:
        """The names of those that multiply matrices or vectors."""
        return {str(op) for op in self.ops if IS_A_PRODUCT.search(str(op).removeprefix("aten."))}

    @property
    def without_formula(self) -> set[str]:
        return self.products - {str(op) for op in flop_registry}


@pytest.mark.slow
def test_torch_has_a_formula_for_every_product_that_runs() -> None:
    """Without a formula, torch and so the tests above would count a product as 0."""
    with Seen() as seen:
        for options in OPTIONS:
            for autocast in (False, True):
                config = Config(**parts_of(**options), z_loss=0.1, importance=0.1)
                module = module_of(config)
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    module.losses(*batch(config)).total.backward()
                build_optimizer(module.model, config.optim, precision="fp32").step()
                module.eval().model(batch(config)[0])
    fused = "aten._scaled_dot_product_flash_attention_for_cpu"  # in float32, in which nothing above counts attention
    of_norm = "aten.mv"  # sums in its backward pass, which are left out
    assert seen.without_formula == {fused, f"{fused}_backward", of_norm}
    assert seen.products == {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"} | seen.without_formula


def test_a_product_without_a_formula_is_noticed() -> None:
    x, y = torch.randn(3, 3), torch.randn(3)
    with Seen() as seen:
        x @ y, y @ y, torch.outer(y, y), nn.functional.linear(x, x), x * x, x.sum()
    assert seen.without_formula == {"aten.mv", "aten.dot"}


def test_the_backward_pass_of_fused_attention_computes_the_scores_again_and_nothing_else() -> None:
    B, H, S, W = 3, 2, 12, 8
    shape, fused = (B, H, S, W), "scores that fused attention"
    config = Config(**parts_of())
    scores_and_values = (stated(config).layers[0].attention - 2 * 4 * 16**2) * B * S
    assert sdpa_flop_count(shape, shape, shape) == scores_and_values
    assert sdpa_backward_flop_count(shape, shape, shape, shape) == 2 * scores_and_values + 2 * B * H * S * S * W
    assert any(fused in text for text in LEFT_OUT)
