"""The ledger of a run's computation: its kinds, with even and with measured loads, and the sums that users see."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import ROWS, VOCABULARY, batch, by_module, composed, in_bf16, module_of, stated
from rich.console import Console
from small_models import OF_ROUTER, parts_of, router_options
from torch.utils.flop_counter import FlopCounterMode

from switch_lm.config.schema import Config, DataConfig, TrainerConfig
from switch_lm.measure.ledger import LEFT_OUT, LayerWork, ledger, optimizer_flops, run_ledger
from switch_lm.model.config import ModelConfig
from switch_lm.optim.base import build_optimizer
from switch_lm.routers.options import SwitchOptions
from switch_lm.training.hardware import detect
from switch_lm.training.summary import print_plan


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_kinds_of_one_layer_are_its_products() -> None:
    model = ModelConfig(num_layers=1, d_model=8, d_ff=32, context_length=10, num_experts=4, shared_expert=True)
    work = ledger(model, SwitchOptions(), vocab_size=5, batch_size=2)  # 20 tokens: 4 experts have 7 slots each
    (layer,) = work.layers
    ffn = 2 * (8 * 32 + 32 * 8)
    assert layer.attention == 2 * (8 * 24 + 8 * 8) + 2 * (10 * 8 + 10 * 8)
    assert (layer.feed_forward, layer.router, layer.useful, layer.dropped) == (ffn, 2 * 8 * 4, ffn, 0)
    assert layer.padded == pytest.approx((28 - 20) / 20 * ffn)
    causal = 2 * (8 * 24 + 8 * 8) + 2 * 2 * 10 * 8 * 11 / 20  # (S + 1) / 2S of the scores and weighted values
    useful = 3 * 20 * (causal + 2 * ffn + 2 * 8 * 4 + 2 * 8 * 5)  # of a step: also the head
    assert work.useful_per_step == work.as_plain()["useful_per_step"] == pytest.approx(useful)


@pytest.mark.parametrize(
    ("changes", "useful", "padded", "dropped"),
    [
        ({"capacity_factor": None}, 1, 0, 0),
        ({"capacity_factor": 1.0}, 1, 0, 0),
        ({"capacity_factor": 2.0}, 1, 1, 0),
        ({"capacity_factor": 0.5}, 0.5, 0, 0.5),
        ({"capacity_factor": 2.5, "top_k": 2}, 2, 0.5, 0),
        ({"capacity_factor": 1.0, "top_k": 2}, 1, 0, 1),
        ({"capacity_factor": None, "random_drop_rate": 0.25}, 0.75, 0.25, 0.25),
        ({"capacity_factor": 2.0, "random_drop_rate": 0.25}, 0.75, 1.25, 0.25),
        ({"capacity_factor": 2.0, "capacity_group": "sequence"}, 1, 1, 0),
    ],
    ids=str,
)
def test_before_training_the_load_is_assumed_to_be_even(
    changes: dict[str, Any], useful: float, padded: float, dropped: float
) -> None:
    router = router_options(**{key: changes[key] for key in changes.keys() & OF_ROUTER})
    model = ModelConfig(**{key: value for key, value in changes.items() if key not in OF_ROUTER})
    layer = ledger(model, router, vocab_size=65, batch_size=64).layers[0]
    ffn = 2 * 2 * 128 * 512
    assert (layer.useful, layer.padded, layer.dropped) == pytest.approx((useful * ffn, padded * ffn, dropped * ffn))


def test_nothing_is_dropped_at_random_in_evaluation() -> None:
    model, router = ModelConfig(eval_capacity_factor=1.0), SwitchOptions(random_drop_rate=0.25)
    layer = ledger(model, router, vocab_size=65, batch_size=64, training=False).total
    assert layer.useful > 0 and layer.padded == layer.dropped == 0


@pytest.mark.parametrize(
    "options",
    [
        {"capacity_factor": 0.5},
        {"capacity_factor": 1.25, "top_k": 2, "capacity_group": "sequence"},
        {"capacity_factor": None, "random_drop_rate": 0.4},
        {"capacity_factor": 2.0, "random_drop_rate": 0.4},
        {"capacity_factor": 0.5, "overflow": "reroute"},
        {"capacity_factor": 1.0, "overflow": "passthrough", "switch_every": 2, "num_layers": 4},
    ],
    ids=str,
)
def test_with_measured_drops_useful_computation_is_that_of_the_kept_choices(options: dict[str, Any]) -> None:
    config = Config(**parts_of(**options))
    module, (ids, _) = module_of(config), batch(config)
    with FlopCounterMode(display=False) as counter, in_bf16():
        routings = module.model(ids).routings
    kept = [int(routing.kept_TK.sum()) for routing in routings]
    work = stated(config, kept_L=[number / ids.numel() for number in kept])
    ffn, counted = 2 * 2 * 16 * 24, by_module(counter)
    switch = [block for block in range(config.model.num_layers) if config.model.is_switch(block)]
    for block, routing, num_kept in zip(switch, routings, kept, strict=True):
        layer, router = work.layers[block], 2 * ids.numel() * 16 * 4
        assert round(layer.useful * ids.numel()) == num_kept * ffn
        assert round((layer.useful + layer.padded) * ids.numel()) == counted[f"blocks.{block}.ffn"] - router
        assert round(layer.dropped * ids.numel()) == (routing.expert_TK.numel() - num_kept) * ffn
        assert num_kept < routing.expert_TK.numel()
    assert work.forward == pytest.approx(stated(config).forward)  # what is executed does not depend on drops
    empty, later = work.total.padded * ids.numel(), len(work.layers) * ROWS * sum(range(12)) * 2 * 2 * 16
    assert work.useful_per_step == pytest.approx(3 * (counter.get_total_flops() - empty - later))


def test_a_switch_layer_for_which_no_drops_were_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stated(Config(**parts_of()), kept_L=[1.0])


def test_computation_is_that_of_a_dense_model_plus_router_and_empty_slots() -> None:
    dense, dropless, padded = (
        ledger(ModelConfig(**change), SwitchOptions(), vocab_size=65, batch_size=64).forward
        for change in ({"switch_every": 0}, {"capacity_factor": None}, {"capacity_factor": 2.0})
    )
    assert dropless - dense == 4 * 2 * 128 * 8  # the router alone
    assert padded - dropless == 4 * 2 * (2 * 128 * 512)  # as many empty slots as tokens


def test_more_experts_cost_their_router_columns_and_their_empty_slots_alone() -> None:
    few, many = (stated(Config(**parts_of(num_experts=n, capacity_factor=None))) for n in (4, 64))
    assert many.forward - few.forward == 2 * 2 * 16 * (64 - 4)
    few, many = (stated(Config(**parts_of(num_experts=n, capacity_factor=0.01))) for n in (4, 64))  # one slot each
    more = 2 * 16 * (64 - 4) + 2 * 2 * 16 * 24 * (64 - 4) / (ROWS * 12)
    assert many.forward - few.forward == pytest.approx(2 * more)


# Totals


@pytest.mark.parametrize("train_only", ["all", "router", "experts"])
def test_a_run_is_its_steps_of_accumulated_micro_batches_and_their_updates(train_only: str) -> None:
    shared = {"shared_expert": True, "num_layers": 3, "switch_layers": [1, 2]} if train_only != "all" else {}
    config = Config(
        **parts_of(**shared),
        train_only=train_only,
        data=DataConfig(batch_size=ROWS),
        trainer=TrainerConfig(max_steps=2, accumulate=3),
    )
    module = module_of(config)
    optimizer = build_optimizer(module.model, config.optim, precision="fp32")
    counted = {"training": 0, "optimizer": 0}
    for _ in range(2):
        with FlopCounterMode(display=False) as passes, in_bf16():
            for _ in range(3):
                module.losses(*batch(config)).total.backward()
        with FlopCounterMode(display=False) as updates:
            optimizer.step()
        counted["training"] += passes.get_total_flops()
        counted["optimizer"] += updates.get_total_flops()
    work = run_ledger(config, vocab_size=len(VOCABULARY))
    assert counted == {"training": round(work.training), "optimizer": work.as_plain()["optimizer"]}
    assert counted["training"] == 2 * round(work.per_step)


def test_the_plain_ledger_adds_up_and_is_json() -> None:
    config = replace(composed("model.switch_every=2", "model.capacity_factor=0.5"), trainer=TrainerConfig(accumulate=4))
    work = run_ledger(config, vocab_size=65)
    plain = json.loads(json.dumps(work.as_plain()))
    kinds = [field.name for field in fields(LayerWork)]
    whole = plain["forward_per_token"]
    assert list(whole) == [*kinds, "executed", "head"]
    assert whole["executed"] == sum(whole[kind] for kind in [*kinds, "head"] if kind != "dropped") == work.forward
    assert whole["dropped"] > 0 and len(plain["layers"]) == 4
    for kind in kinds:
        assert whole[kind] == sum(layer[kind] for layer in plain["layers"])
    for kind, value in whole.items():
        assert plain["backward_per_token"][kind] == 2 * value
        assert plain["forward_per_step"][kind] == 32 * 128 * 4 * value
        assert plain["backward_per_step"][kind] == 2 * 32 * 128 * 4 * value
    step = plain["forward_per_step"]["executed"] + plain["backward_per_step"]["executed"]
    assert plain["training"] == pytest.approx(1800 * step)
    update = optimizer_flops(config.model, config.optim)
    assert plain["optimizer"] == 1800 * plain["optimizer_per_step"] == 1800 * update
    assert plain["left_out"] == list(LEFT_OUT)
    assert asdict(work.total) == {kind: whole[kind] for kind in kinds}


def plan(config: Config, source: str = "a text") -> str:
    """The plan that the console shows before training."""
    console = Console(file=io.StringIO(), width=120)
    hardware = detect(config, training_flops=0.0)
    print_plan(console, config, hardware, run=Path("run"), source=source, sizes=(1_000_000, 100_000), vocab=65)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_name_in_the_plan_is_no_markup_and_no_command() -> None:
    assert "[/x][bold]a:smile:\\x1b[31m.txt: 1,000,000" in plan(Config(), source="[/x][bold]a:smile:\x1b[31m.txt")


def test_the_plan_shows_the_computation_by_kind() -> None:
    attention, router, ffn, head = 2 * 4 * 128**2 + 4 * 128 * 128, 2 * 128 * 8, 4 * 128 * 512, 2 * 128 * 65
    dense, forward = 4 * (attention + ffn) + head, 4 * (attention + router + 1.25 * ffn) + head
    parts = {"attention": 4 * attention, "experts": 4 * ffn, "their empty slots": ffn, "router": 4 * router}
    words = ", ".join(f"{name} {flops / 1e6:.2f}" for name, flops in {**parts, "head": head}.items())
    experts_moved = 8 * 2 // 2  # every second step
    muon = 2 * 4 * (4 * (3 + 1 + 4 * experts_moved) + 14 * (1 + 1 + experts_moved)) * 128**3
    text = plan(composed())
    assert f"{forward / 1e6:.2f} MFLOP per token forward: {words}" in text
    assert f"{forward / dense:.2f} x that of model=dense; forward and backward {3 * 4096 * forward / 1e9:.2f} " in text
    assert f" GFLOP per step, {muon / 1e9:.2f} more in muon" in text


def test_the_plan_of_a_dense_model_mentions_no_experts() -> None:
    text = plan(composed("model=dense", "optim=adamw"))
    (computation,) = re.findall(r"^computation +(.*?) *$", text, re.MULTILINE)
    assert re.sub(r"[\d.]+", "#", computation) == "# MFLOP per token forward: attention #, dense feed-forward #, head #"
    assert re.search(r"1\.00 x that of model=dense; forward and backward [\d.]+ GFLOP per step *\n", text)
