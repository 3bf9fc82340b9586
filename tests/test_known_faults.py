"""Faults that other implementations of mixtures of experts have had. Each test fails if its fault is introduced.

Of gates, noise, state and losses here; of time, memory and precision in test_known_costs.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import logged
from small_models import NOISE, batch, layer, module_of, parts_of, short_run
from torch import Tensor
from worked import route

import switch_lm
from switch_lm.config.schema import Config
from switch_lm.measure.evaluation import evaluate
from switch_lm.model.losses import language_loss, summed
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.routers.losses import load_balancing_loss
from switch_lm.routers.options import BalanceOptions, TopKOptions
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return short_run(tmp_path)


def test_the_language_loss_alone_reaches_every_weight_the_router_included() -> None:
    """A softmax after the selection would make the gate a constant 1. test_options has its gradient in closed form."""
    module = module_of(alpha=0.0)
    ids, targets = batch()
    module.losses(ids, targets).total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-5, name


def test_a_single_token_is_never_dropped() -> None:
    module = layer(num_experts=64, eval_capacity_factor=0.01).eval()
    for _ in range(5):
        y_BSD, routing = module(torch.randn(1, 1, 8))
        assert routing.capacity == 1 and routing.kept_TK.all()
        assert (y_BSD != 0).any()


def test_validation_reports_the_language_loss_alone_without_noise_and_selects_the_best_checkpoint_by_it(
    config: Config,
) -> None:
    config = replace(config, **parts_of(**NOISE), alpha=1.0, z_loss=1.0, importance=1.0)
    result = train(config)
    run = Path(config.outputs) / "runs" / "run"
    model, vocabulary = switch_lm.load(run / "checkpoints" / "last.ckpt")
    ids = vocabulary.encode(Path(str(config.data.path)).read_text())
    ids = ids[int(0.9 * len(ids)) :]
    by_hand = evaluate(model, ids, context_length=12, batch_size=8, capacity_factor=None, precision="fp32").loss
    assert result["val_loss"] == pytest.approx(by_hand, abs=1e-5)
    points = logged(run)
    losses = list(points["val/loss"].values())
    assert len(losses) == 2 and losses[-1] == pytest.approx(by_hand, abs=1e-5)
    assert result["best_val_loss"] == pytest.approx(min(losses), abs=1e-5)
    for tag in ("moe/balance_loss", "train/z_loss", "train/importance_loss"):
        assert points[tag][1] > 1e-3  # a validation loss that held one of them would differ


@pytest.mark.parametrize("eval_capacity_factor", [None, 0.5])
def test_evaluation_has_no_noise(eval_capacity_factor: float | None) -> None:
    noisy = module_of(eval_capacity_factor=eval_capacity_factor, **NOISE).eval()
    calm = module_of(eval_capacity_factor=eval_capacity_factor).eval()
    calm.load_state_dict(noisy.state_dict())
    ids, targets = batch()
    before = torch.get_rng_state()
    losses = [module.losses(ids, targets).total for module in (noisy, noisy, calm)]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(torch.get_rng_state(), before)  # no random number is drawn


@pytest.mark.parametrize("source", NOISE)
def test_every_source_of_noise_is_active_in_training(source: str) -> None:
    module, (ids, targets) = module_of(capacity_factor=0.5, **{source: NOISE[source]}), batch()
    assert module.losses(ids, targets).total != module.losses(ids, targets).total


@pytest.mark.parametrize("capacity_factor", [None, 4.0])
def test_jitter_changes_the_input_of_the_router_and_not_that_of_the_experts(capacity_factor: float | None) -> None:
    module = layer(rule=TopKOptions(top_k=1, jitter=0.3), capacity_factor=capacity_factor)
    x_BSD = torch.randn(2, 20, 8)
    given = x_BSD.clone()
    y_BSD, routing = module(x_BSD)
    assert torch.equal(x_BSD, given)
    clean = given.flatten(0, 1) @ torch.as_tensor(module.router.w_DE)
    assert not torch.allclose(routing.logits_TE, clean, atol=1e-2)
    for t, x_D in enumerate(given.flatten(0, 1)):
        e = int(routing.expert_TK[t, 0])
        expert_D = (x_D @ module.experts.w_in_EDF[e]).relu() @ module.experts.w_out_EFD[e]
        assert torch.allclose(y_BSD.flatten(0, 1)[t], routing.gate_TK[t] * expert_D, atol=1e-5)
    assert torch.allclose(module.eval()(x_BSD)[1].logits_TE, clean)


def test_other_forward_passes_do_not_change_the_next_loss() -> None:
    module, (ids, targets) = module_of(alpha=1.0, z_loss=1.0, importance=1.0), batch()
    first = module.losses(ids, targets)
    with torch.no_grad():
        module.eval()
        module.model(ids[:1], cache=module.model.new_cache())
        module.model(ids)
        module.train()
        module.model(ids.flip(0))
    again = module.losses(ids, targets)
    assert same(again[:5], first[:5])


def test_a_forward_pass_leaves_nothing_on_the_modules() -> None:
    module, (ids, _) = module_of(shared_expert=True, balance=BalanceOptions(name="sign")), batch()

    def attributes() -> list[tuple[str, list[str], str]]:
        return [(name, sorted(vars(part)), repr(part.extra_repr())) for name, part in module.model.named_modules()]

    def lists() -> list[int]:
        return [len(v) for part in module.model.modules() for v in vars(part).values() if isinstance(v, list)]

    before, lengths, state = attributes(), lists(), copy.deepcopy(module.state_dict())
    module.model(ids)
    assert (attributes(), lists()) == (before, lengths)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_only_an_optimizer_step_changes_the_selection_bias_which_is_the_only_state(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves by its rate towards the experts that all micro-batches together selected less often than the mean."""
    loads, biases = [], []
    real = SwitchFeedForward.forward

    def noted(self: SwitchFeedForward, *args: Any, **kwargs: Any) -> Any:
        y_BSD, routing = real(self, *args, **kwargs)
        if self.training and self.router.bias_E is not None:
            loads.append(routing.load_E)
            biases.append(self.router.bias_E.clone())
        return y_BSD, routing

    monkeypatch.setattr(SwitchFeedForward, "forward", noted)
    balance = BalanceOptions(name="sign", rate=0.01)
    train(replace(config, balance=balance, trainer=replace(config.trainer, max_steps=1, accumulate=2)))
    model, _ = switch_lm.load(Path(config.outputs) / "runs" / "run" / "checkpoints" / "last.ckpt")
    assert len(loads) == 4 and not torch.stack(biases).any()  # two micro-batches of two layers
    for number in (0, 1):
        load_E = loads[number] + loads[2 + number]
        moved_E = 0.01 * (load_E.float().mean() - load_E).sign()
        assert moved_E.any()
        bias_E = model.get_buffer(f"blocks.{number}.ffn.router.bias_E")
        assert torch.equal(bias_E, moved_E - moved_E.mean())


def test_balance_losses_are_taken_per_router_call_and_added_over_layers() -> None:
    """Two parts each send all tokens to one of two experts: each has a loss of E = 2; together they are balanced."""
    parts_TE = [torch.tensor([logits]).expand(10, 2) for logits in ([30.0, 0.0], [0.0, 30.0])]
    routings = [route(part_TE, capacity=None) for part_TE in parts_TE]
    assert [float(load_balancing_loss(routing)) for routing in routings] == pytest.approx([2.0, 2.0])
    assert float(summed(load_balancing_loss, routings)) == pytest.approx(4.0)
    assert float(load_balancing_loss(route(torch.cat(parts_TE), capacity=None))) == pytest.approx(1.0)


class GradientSeen(BaseException):
    """Ends a run: nothing in the package catches it."""


def test_accumulation_balances_each_micro_batch(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step is the mean over micro-batches of the gradient of language loss + alpha E f.P.

    f and P are those of each router call, as in the paper's appendix F, and not those of the whole step.
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
    dropless = replace(config.model, capacity_factor=None)  # so that the parts and the whole do not differ in capacity
    with pytest.raises(GradientSeen):
        train(replace(config, model=dropless, alpha=10.0, trainer=replace(config.trainer, accumulate=2)))
    (module,), ids, targets = modules, [b.ids for b in batches], [b.targets for b in batches]
    assert len(ids) == 2

    def router_gradient(ids: Tensor, targets: Tensor) -> Tensor:
        output = module.model(ids)
        balance = sum(4 * (r.load_E / r.load_E.sum() * r.probs_TE.mean(0)).sum() for r in output.routings)
        loss = language_loss(output.logits, targets) + 10.0 * balance
        return torch.autograd.grad(loss, router)[0]

    router = module.model.get_parameter("blocks.0.ffn.router.w_DE")
    mean_of_parts = torch.stack([router_gradient(*part) for part in zip(ids, targets, strict=True)]).mean(0)
    of_the_whole = router_gradient(torch.cat(ids), torch.cat(targets))
    assert router.grad is not None
    assert torch.allclose(router.grad, mean_of_parts, atol=1e-5)
    assert not torch.allclose(router.grad, of_the_whole, atol=1e-3)
