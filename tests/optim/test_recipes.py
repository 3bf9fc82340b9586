"""How a recipe divides the parameters: rates of their own for routers, and optimizers of somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from compare import same
from conftest import folder_of, tiny_model
from torch import nn
from torch.optim import SGD, Optimizer

from switch_lm.config import families
from switch_lm.config.keys import BELOW_ONE, key
from switch_lm.config.schema import Config
from switch_lm.model.experts import FeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.optim.adamw import AdamWRecipe
from switch_lm.optim.base import Recipe, build_optimizer
from switch_lm.optim.options import AdamWOptions, MuonOptions, OptimOptions, Shape
from switch_lm.storage import checkpoint
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

NO_DECAY: dict[str, Any] = {"weight_decay": 0.0, "lr": 0.01}


@pytest.fixture
def own_families(monkeypatch: pytest.MonkeyPatch) -> dict[str, families.Family]:
    """A copy of the optimizers that are known, for recipes of a test."""
    copy = dict(families.FAMILIES["optim"])
    monkeypatch.setitem(families.FAMILIES, "optim", copy)
    return copy


def moved(options: OptimOptions) -> dict[str, torch.Tensor]:
    """How far one step moves each parameter, always from the same weights and gradients."""
    model = tiny_model(7).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    model(torch.arange(20).view(2, 10) % 7).logits.square().mean().backward()
    build_optimizer(model, options, precision="fp32").step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def routers(model: SwitchLM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if "router" in name}


# The routers' own rate


@pytest.mark.parametrize("Options", [AdamWOptions, MuonOptions])
def test_router_lr_is_the_rate_of_the_routers_weights_and_of_nothing_else(Options: type[AdamWOptions]) -> None:
    alike, apart = moved(Options(**NO_DECAY)), moved(Options(**NO_DECAY, router_lr=0.03))
    of_routers = routers(tiny_model(7))
    assert len(of_routers) == 2
    for name in alike:
        if name in of_routers:
            torch.testing.assert_close(apart[name], 3 * alike[name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(apart[name], alike[name]), name


@pytest.mark.parametrize("Options", [AdamWOptions, MuonOptions])
def test_a_router_lr_equal_to_lr_changes_no_bit(Options: type[AdamWOptions]) -> None:
    assert same(moved(Options(lr=0.01)), moved(Options(lr=0.01, router_lr=0.01)))


def test_groups_are_matrices_then_vectors_and_those_of_routers_stand_apart_if_they_have_a_rate() -> None:
    def groups(options: OptimOptions) -> list[tuple[int, float, float]]:
        model = tiny_model(7)
        model.switch_layers[0].router.scale = nn.Parameter(torch.ones(4))
        result = build_optimizer(model, options, precision="fp32").param_groups
        return [(len(group["params"]), group["lr"], group["weight_decay"]) for group in result]

    muon = [(4, 0.02, 0.1), (4, 0.02, 0.1)]
    assert groups(MuonOptions()) == [(4, 0.003, 0.1), (6, 0.003, 0.0), *muon]
    apart = [(2, 0.5, 0.1), (1, 0.5, 0.0)]
    assert groups(MuonOptions(router_lr=0.5)) == [(2, 0.003, 0.1), (5, 0.003, 0.0), *apart, *muon]
    assert groups(AdamWOptions(router_lr=0.5)) == [(10, 0.003, 0.1), (5, 0.003, 0.0), *apart]


def test_the_feed_forward_of_a_router_is_no_hidden_matrix() -> None:
    model = tiny_model(7)
    before = model.hidden_matrices()
    model.switch_layers[0].router.scorer = FeedForward(d_model=16, d_ff=8, activation="relu")
    assert [id(matrix) for matrix in model.hidden_matrices()] == [id(matrix) for matrix in before]


# Whole runs, stopped and continued


class PlugPulled(BaseException):
    """Nothing in the program catches it."""


def content(config: Config) -> dict[str, Any]:
    return checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")


def check_resume(config: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The last checkpoint of a run that was stopped and continued; it equals that of a run that never was."""
    whole = replace(config, name="whole")
    train(whole)
    real = SwitchModule.training_step

    def stops(self: SwitchModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 6:
            raise PlugPulled
        return real(self, batch, batch_idx)

    monkeypatch.setattr(SwitchModule, "training_step", stops)
    with pytest.raises(PlugPulled):
        train(config)
    monkeypatch.setattr(SwitchModule, "training_step", real)
    train(replace(config, resume="run"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(content(config)[part], content(whole)[part]), part
    return content(config)


def groups_in(saved: dict[str, Any]) -> list[dict[str, Any]]:
    return [group for one in saved["optimizer_states"][0]["optimizers"] for group in one["param_groups"]]


@pytest.mark.parametrize("Options", [AdamWOptions, MuonOptions])
def test_router_lr_survives_a_resume_and_the_schedule_multiplies_it(
    Options: type[AdamWOptions], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.optim = Options(warmup_steps=3, router_lr=0.3, min_factor=0.5)
    group = groups_in(check_resume(config, monkeypatch))[2]
    assert group["initial_lr"] == 0.3 and group["lr"] == pytest.approx(0.15)


def define_sign_descent() -> None:
    """A recipe in one file, as a plugin would have it: signed momentum on hidden matrices, AdamW on the rest."""

    @dataclass
    class SignOptions(AdamWOptions):
        name: str = key("sign", "Which optimizer it is.")
        decay: float = key(0.9, "Decay of the mean gradient.", BELOW_ONE)

        def flops_per_step(self, shapes: Iterable[Shape]) -> float:
            return float(sum(shape[-1] for shape in shapes))

    class Sign(Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self.state[parameter]
                        mean = state.setdefault("mean", torch.zeros_like(parameter))
                        mean.lerp_(parameter.grad, 1 - group["decay"])
                        parameter.sub_(mean.sign(), alpha=group["lr"])

    class SignRecipe(AdamWRecipe):
        name = "sign"
        Options = SignOptions
        options: SignOptions

        def optimizers(self) -> Sequence[Optimizer]:
            hidden = self.model.hidden_matrices()
            return [
                self.adamw(self.all_but(hidden)),
                Sign(self.groups(hidden), {"decay": self.options.decay}),
            ]


def test_a_recipe_of_a_plugin_is_trained_counted_saved_and_continued(
    config: Config, monkeypatch: pytest.MonkeyPatch, own_families: dict[str, families.Family]
) -> None:
    define_sign_descent()
    config.optim = own_families["sign"].options(warmup_steps=3, decay=0.8)
    saved = check_resume(config, monkeypatch)
    adamw, sign = saved["optimizer_states"][0]["optimizers"]
    assert [group["decay"] for group in sign["param_groups"]] == [0.8]
    assert all(state["mean"].any() for state in sign["state"].values())
    D, F = config.model.d_model, config.model.d_ff
    assert len(sign["state"]) == 2 * 4 and len(adamw["state"]) == 2 * 3 + 3
    result = train(replace(config, name="third"))
    assert result["computation"]["optimizer_per_step"] == 2 * (D + D + F + D)


def test_a_recipe_without_keys_of_its_own_is_a_name_and_one_method(own_families: dict[str, families.Family]) -> None:
    class Descent(Recipe):
        name = "descent"

        def optimizers(self) -> Sequence[Optimizer]:
            return [SGD(self.groups(self.model.parameters()))]

    assert own_families["descent"] == families.Family(OptimOptions, Descent)
    steps = moved(OptimOptions("descent", lr=0.5, router_lr=0.25, weight_decay=0.0))
    twice = moved(OptimOptions("descent", lr=1.0, router_lr=0.5, weight_decay=0.0))
    assert all(steps[name].any() for name in steps)
    for name in steps:
        torch.testing.assert_close(twice[name], 2 * steps[name], rtol=1e-3, atol=1e-6)


def test_only_a_class_that_states_a_name_is_a_choice(own_families: dict[str, families.Family]) -> None:
    class Shared(AdamWRecipe):
        """Code that two recipes share."""

    assert set(own_families) == {"adamw", "muon"}
    assert families.load("optim", "adamw") is AdamWRecipe


def test_a_recipe_that_leaves_out_a_parameter_or_gives_it_twice_is_refused(
    own_families: dict[str, families.Family],
) -> None:
    class Hidden(Recipe):
        name = "hidden"

        def optimizers(self) -> Sequence[Optimizer]:
            return [SGD(self.groups(self.model.hidden_matrices()))]

    class Twice(Recipe):
        name = "twice"

        def optimizers(self) -> Sequence[Optimizer]:
            every = self.groups(self.model.parameters())
            return [SGD(every), SGD(self.groups(self.model.hidden_matrices()))]

    with pytest.raises(ValueError, match=r"optim=hidden trains all parameters but embedding\.weight, .*Hidden\.opt"):
        moved(OptimOptions("hidden"))
    with pytest.raises(ValueError, match="more than one parameter group"):
        moved(OptimOptions("twice"))
