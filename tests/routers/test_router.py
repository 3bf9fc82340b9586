"""What holds for every router: its forward is final, its noise its own, and its buffers change after a step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import folder_of, logged
from small_models import module_of, short_run
from torch import Tensor

from switch_lm.config import families
from switch_lm.config.families import FAMILIES
from switch_lm.config.schema import Config, HealthConfig
from switch_lm.measure.router_health import router_health
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.base import Router
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions, TopKOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import TrainingError
from switch_lm.training.callbacks import window_losses
from switch_lm.training.start import train


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Routing]]:
    """What `after_step` of each router of `router=counting` was given, which is a family for the test alone."""
    given: list[Sequence[Routing]] = []
    monkeypatch.setitem(FAMILIES, "router", dict(FAMILIES["router"]))

    class Counting(SwitchRouter):
        """Counts steps and tokens in buffers, and has a loss of its own."""

        name = "counting"
        Options = SwitchOptions

        steps: Tensor
        load_E: Tensor

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("load_E", torch.zeros(self.num_experts, dtype=torch.int64))

        def after_step(self, routings: Sequence[Routing]) -> None:
            given.append(routings)
            self.steps += 1
            self.load_E += torch.stack([routing.load_E for routing in routings]).sum(dim=0)

        def aux_losses(self, routing: Routing) -> dict[str, Tensor]:
            return super().aux_losses(routing) | {"sharpness": routing.probs_TE.square().sum(dim=1).mean()}

    return given


def counting(tmp_path: Path, **changes: Any) -> Config:
    """Four steps of two micro-batches each with `router=counting`, and everything that a run does between steps."""
    config = short_run(tmp_path)
    router = SwitchOptions(name="counting", jitter=0.1, drop_order="random")
    trainer = replace(config.trainer, max_steps=4, accumulate=2, val_every=1, checkpoint_every=1)
    logger = replace(config.logger, sample_length=5, sample_prompt="a")
    return replace(config, router=router, trainer=trainer, logger=logger, health=HealthConfig(every=1), **changes)


def state_of(config: Config) -> dict[str, Any]:
    return dict(checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt"))


# --- Forward


def test_a_forward_of_its_own_is_refused_where_the_class_is_written() -> None:
    with pytest.raises(TypeError, match=r"Own\.forward: the forward of a router is final; write assign instead"):

        class Own(SwitchRouter):
            def forward(self, x_TD: Tensor) -> Routing:  # type: ignore[override,misc]
                raise AssertionError

    class Mixin:
        def forward(self, x_TD: Tensor) -> Routing:
            raise AssertionError

    with pytest.raises(TypeError, match=r"Inherited\.forward: the forward of a router is final"):
        type("Inherited", (Mixin, SwitchRouter), {})


def test_a_router_without_assign_says_so() -> None:
    class Empty(Router):
        pass

    with pytest.raises(NotImplementedError, match="Empty writes no assign"):
        Empty(d_model=2, num_experts=2)(torch.ones(1, 2))
    with pytest.raises(TypeError, match="Chosen is a router without an assign of its own; write assign"):
        type("Chosen", (Router,), {"name": "chosen"})
    assert "chosen" not in FAMILIES["router"]


class Recorder(SwitchRouter):
    """Keeps the input of `assign`, and whether autocast was on."""

    def __init__(self, options: RouterOptions, **sizes: Any) -> None:
        super().__init__(options, **sizes)
        self.inputs: list[Tensor] = []
        self.autocast: list[bool] = []

    def assign(self, x_TD: Tensor, logits_TE: Tensor, **others: Any) -> Routing:
        self.inputs.append(x_TD)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        assert x_TD.dtype == logits_TE.dtype == torch.float32
        assert torch.equal(logits_TE, x_TD @ torch.as_tensor(self.w_DE))
        return super().assign(x_TD, logits_TE, **others)


def recorded(**options: Any) -> tuple[SwitchFeedForward, Recorder]:
    torch.manual_seed(0)
    router = Recorder(SwitchOptions(**{"jitter": 0.0} | options), d_model=8, num_experts=4)
    return SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, capacity_factor=None, router=router), router


@pytest.mark.parametrize("noise", [{"jitter": 0.3}, {"input_dropout": 0.3}], ids=str)
def test_noise_reaches_the_input_of_assign_and_not_that_of_the_experts(noise: dict[str, float]) -> None:
    (layer, router), x_BSD = recorded(**noise), torch.randn(3, 20, 8)
    y_BSD, routing = layer(x_BSD)
    x_TD = x_BSD.flatten(0, 1)
    assert not torch.allclose(router.inputs[0], x_TD, atol=1e-2)
    torch.testing.assert_close(y_BSD.flatten(0, 1), layer.combined(x_TD, routing))  # of the clean input
    layer.eval()(x_BSD)
    assert torch.equal(router.inputs[1], x_TD)


def test_autocast_is_off_inside_assign_and_its_input_is_float32() -> None:
    (layer, router), x_BSD = recorded(), torch.randn(3, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x_BSD.bfloat16())
        assert torch.is_autocast_enabled("cpu")
    assert router.autocast == [False]


def test_a_router_made_for_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="made for 3 experts and the layer for 4: give both the same num_experts"):
        SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, router=SwitchRouter(d_model=8, num_experts=3))
    with pytest.raises(ValueError, match="made for d_model=9 and the layer for 8: give both the same"):
        SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, router=SwitchRouter(d_model=9, num_experts=4))


def test_two_classes_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "router", dict(FAMILIES["router"]))
    with pytest.raises(ValueError, match="router=switch: there is one of this name already"):

        class Other(SwitchRouter):
            name = "switch"


# --- State


def test_only_a_step_changes_buffers_and_it_gets_all_micro_batches_without_gradients(
    tmp_path: Path, seen: list[Sequence[Routing]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validations, samples, window losses and the router watch run between the steps, and change nothing."""
    monkeypatch.setattr(window_losses, "EVERY", 1)
    config = counting(tmp_path)
    train(config)
    weights, tokens = state_of(config)["state_dict"], 8 * 12
    for block in (0, 1):
        router = f"model.blocks.{block}.ffn.router"
        assert int(weights[f"{router}.steps"]) == 4
        assert int(weights[f"{router}.load_E"].sum()) == 4 * 2 * tokens
    assert logged(folder_of(config))["train/sharpness_loss"].keys() == {1, 2, 3, 4}
    assert len(seen) == 2 * 4  # of two layers
    for routings in seen:
        assert [routing.num_tokens for routing in routings] == [tokens, tokens]
        assert not any(getattr(r, name).requires_grad for r in routings for name in ("gate_N", "probs_TE", "scores_TE"))
    for block in (0, 1):
        loads = torch.stack([routing.load_E for routings in seen[block::2] for routing in routings]).sum(dim=0)
        assert torch.equal(weights[f"model.blocks.{block}.ffn.router.load_E"], loads)


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("switch_layers", [None, [1]], ids=["both layers", "the second"])
def test_a_resumed_run_goes_on_with_the_buffers_bit_for_bit(
    switch_layers: list[int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = counting(tmp_path)
    whole.model.switch_layers = switch_layers
    train(whole)
    weights = state_of(whole)["state_dict"]
    assert [n for n in (0, 1) if f"model.blocks.{n}.ffn.router.steps" in weights] == (switch_layers or [0, 1])
    parts = replace(whole, name="parts")
    real = SwitchRouter.assign

    def broken(self: SwitchRouter, *args: Any, **kwargs: Any) -> Routing:
        if int(self.steps) == 2:  # type: ignore[arg-type]
            raise OSError("the machine fails in the third step")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(SwitchRouter, "assign", broken)
    with pytest.raises(TrainingError, match="third step"):
        train(parts)
    monkeypatch.setattr(SwitchRouter, "assign", real)
    assert state_of(parts)["global_step"] < 4
    train(replace(parts, resume="parts"))
    for name in ("state_dict", "optimizer_states"):
        assert same(state_of(whole)[name], state_of(parts)[name]), name


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_neither_a_forward_pass_nor_the_health_of_routers_changes_a_buffer(
    mode: str, seen: list[Sequence[Routing]]
) -> None:
    module = module_of(balance=BalanceOptions(name="sign"))
    for router in module.model.routers:
        assert router.bias_E is not None
        router.bias_E.uniform_(-0.1, 0.1)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train(mode == "train")
    ids = torch.randint(5, (4, 13))
    module.model(ids[:, :-1])
    router_health(module.model, ids[:, :-1], ids[:, 1:], alpha=0.5)
    module.losses(ids[:, :-1], ids[:, 1:]).total.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert seen == []


# --- Losses


def test_an_own_loss_is_weighted_by_alpha_and_added_over_layers(seen: list[Sequence[Routing]]) -> None:
    module, ids = module_of(alpha=0.5), torch.arange(48).view(4, 12) % 7
    config = replace(module.config, router=SwitchOptions(name="counting", jitter=0.0))
    torch.manual_seed(0)
    module = type(module)(config, module.vocabulary, corpus_sha256="", precision="fp32")
    losses = module.losses(ids, (ids + 1) % 7)
    by_hand = sum(routing.probs_TE.square().sum(dim=1).mean().item() for routing in losses.routings)
    assert losses.routers["sharpness"].item() == pytest.approx(by_hand)
    parts = losses.language + 0.5 * losses.routers["balance"] + 0.5 * by_hand
    assert losses.total.item() == pytest.approx(parts.item())


@pytest.mark.parametrize("name", ["loss", "sign", "none"])
def test_only_balance_loss_adds_the_balance_loss_to_the_total(name: str) -> None:
    module, ids = module_of(alpha=0.5, balance=BalanceOptions(name=name)), torch.arange(48).view(4, 12) % 7
    losses = module.losses(ids, (ids + 1) % 7)
    assert losses.routers["balance"].item() > 0.5
    added = 0.5 * losses.routers["balance"] if name == "loss" else torch.zeros(())
    assert losses.total.item() == pytest.approx((losses.language + added).item(), abs=1e-6)


@pytest.mark.parametrize("name", ["loss", "sign", "none"])
def test_alpha_changes_a_run_with_balance_loss_alone(name: str, tmp_path: Path) -> None:
    config = replace(short_run(tmp_path), balance=BalanceOptions(name=name, rate=0.1))
    ends = []
    for alpha in (0.0, 100.0):
        one = replace(config, alpha=alpha, name=f"alpha_{alpha:.0f}")
        train(one)
        ends.append(state_of(one)["state_dict"])
        assert min(logged(folder_of(one))["moe/balance_loss"].values()) > 0.5
    assert same(*ends) == (name != "loss")


def test_sign_moves_the_bias_by_the_rate_towards_the_mean_load_of_the_step() -> None:
    router = SwitchRouter(d_model=1, num_experts=4, balance=BalanceOptions(name="sign", rate=0.25))
    logits_TE = 50.0 * torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]), 4)
    of_call: dict[str, Any] = {"ids_T": None, "position_T": None, "capacity": None, "num_groups": 1}
    parts = [router.assign(part_TE, part_TE, **of_call) for part_TE in logits_TE.float().split([6, 2])]
    router.after_step(parts)  # loads 3, 2, 1, 2 of a mean of 2
    assert router.bias_E is not None and router.bias_E.tolist() == [-0.25, 0.0, 0.25, 0.0]
    router.after_step(parts[:1])  # loads 3, 2, 1, 0 of a mean of 1.5
    assert router.bias_E.tolist() == [-0.5, -0.25, 0.5, 0.25]


@pytest.mark.parametrize("name", ["loss", "none"])
def test_without_sign_a_step_moves_nothing(name: str) -> None:
    router = SwitchRouter(d_model=1, num_experts=2, balance=BalanceOptions(name=name, rate=0.25))
    router.after_step([router(torch.ones(3, 1))])
    assert list(router.buffers()) == [] and router.bias_E is None


def test_one_expert_of_topk_is_switch_bit_for_bit() -> None:
    torch.manual_seed(0)
    x_TD = torch.randn(50, 8)
    switch = SwitchRouter(SwitchOptions(), d_model=8, num_experts=4)
    topk = FAMILIES["router"]["topk"].load()(TopKOptions(top_k=1), d_model=8, num_experts=4)
    torch.nn.init.normal_(torch.as_tensor(switch.w_DE))
    topk.load_state_dict(switch.state_dict())
    torch.manual_seed(1)
    first = switch(x_TD, capacity=9)
    torch.manual_seed(1)
    second = topk(x_TD, capacity=9)
    for name in ("expert_N", "slot_N", "gate_N", "kept_N", "scores_TE"):
        assert torch.equal(getattr(first, name), getattr(second, name))
