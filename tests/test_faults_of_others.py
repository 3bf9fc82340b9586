"""Twelve faults seen in other implementations; each test fails if its fault is put in."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import switch_lm
from switch_lm.architecture import ModelConfig
from switch_lm.evaluate import evaluate
from switch_lm.experts import FeedForward
from switch_lm.losses import language_loss, load_balancing_loss, summed
from switch_lm.module import SwitchModule
from switch_lm.routing import RoutingRule, expert_capacity, route
from switch_lm.settings import Config, DataConfig, LoggerConfig, OptimConfig, TrainerConfig
from switch_lm.switch import SwitchFeedForward
from switch_lm.train import train
from switch_lm.vocab import Vocabulary
from switch_lm.windows import split

VOCABULARY = Vocabulary.of(TEXT)
SIZES: dict[str, Any] = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "context_length": 12}
NOISE: dict[str, Any] = {
    "dropout": 0.3,
    "router_jitter": 0.3,
    "router_input_dropout": 0.3,
    "expert_dropout": 0.3,
    "drop_order": "random",
    "selection": "sample",
}
EVERY_QUEUE = [
    RoutingRule(),
    RoutingRule(top_k=2, queue_order="choice"),
    RoutingRule(drop_order="random", capacity_group="sequence"),
    RoutingRule(drop_order="probability", overflow="passthrough"),
    RoutingRule(overflow="reroute"),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def model_of(**changes: Any) -> ModelConfig:
    return ModelConfig(**SIZES | {"num_experts": 4, "router_jitter": 0.0, "init_scale": 1.0} | changes)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of two steps, logged at both, without noise."""
    letters = random.Random(0).choices("abcdefgh .", k=4000)
    (tmp_path / "text.txt").write_text("".join(letters))
    return Config(
        model=model_of(),
        data=DataConfig(path=str(tmp_path / "text.txt"), dir=str(tmp_path / "data"), batch_size=8),
        optim=OptimConfig(warmup_steps=0),
        trainer=TrainerConfig(max_steps=2, val_every=1, device="cpu", precision="fp32", compile="false"),
        logger=LoggerConfig(log_every=1, sample_length=0, progress="none"),
        name="run",
        outputs=str(tmp_path / "outputs"),
    )


def module_of(**changes: Any) -> SwitchModule:
    """What training moves, alone; `changes` are of the configuration, or of its model."""
    torch.manual_seed(0)
    of_config = {key: changes.pop(key) for key in ("alpha", "z_loss", "importance") if key in changes}
    config = Config(model=model_of(**changes), **of_config)
    return SwitchModule(config, VOCABULARY, corpus_sha256="", precision="fp32")


def batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    ids_BS = torch.randint(len(VOCABULARY), (rows, 13), generator=torch.Generator().manual_seed(3))
    return ids_BS[:, :-1], ids_BS[:, 1:]


def layer(num_experts: int = 4, rule: RoutingRule = EVERY_QUEUE[0], **options: Any) -> SwitchFeedForward:
    torch.manual_seed(0)
    options = {"d_model": 8, "d_ff": 12, "router_jitter": 0.0, "init_scale": 1.0} | options
    return SwitchFeedForward(num_experts=num_experts, rule=rule, **options)


# 1


def test_1_the_gate_of_a_single_choice_teaches_the_router() -> None:
    """A softmax taken after the choice would make it a constant 1."""
    logits_TE = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    routing = route(logits_TE, capacity=None)
    (grad_TE,) = torch.autograd.grad(routing.gate_TK.sum(), logits_TE)
    p_TE = routing.probs_TE.detach()
    chosen_TE = torch.nn.functional.one_hot(routing.expert_TK[:, 0], 4)
    assert torch.allclose(grad_TE, p_TE.amax(dim=1, keepdim=True) * (chosen_TE - p_TE), atol=1e-6)
    module = module_of(alpha=0.0)
    ids, targets = batch()
    module._losses(ids, targets).total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-5, name


# 2


def test_2_however_short_the_input_an_expert_has_a_place() -> None:
    for num_tokens in range(1, 40):
        for num_experts in (1, 8, 64):
            for factor in (0.01, 0.5, 1.0, 1.25):
                capacity = expert_capacity(num_tokens, num_experts, factor)
                assert capacity is not None and 1 <= capacity <= num_tokens


def test_2_a_text_that_is_read_one_character_at_a_time_is_never_dropped() -> None:
    module = layer(num_experts=64, eval_capacity_factor=0.01).eval()
    for _ in range(5):
        y_BSD, routing = module(torch.randn(1, 1, 8))
        assert routing.capacity == 1 and routing.kept_TK.all()
        assert (y_BSD != 0).any()


# 3


def test_3_validation_reports_and_keeps_the_best_by_the_language_loss_alone(config: Config) -> None:
    config = replace(config, alpha=1.0, z_loss=1.0, importance=1.0)
    result = train(config)
    run = Path(config.outputs) / "runs" / "run"
    model, vocabulary = switch_lm.load(run / "checkpoints" / "last.ckpt")
    _, ids = split(vocabulary.encode(Path(str(config.data.path)).read_text()))
    by_hand = evaluate(model, ids, context_length=12, batch_size=8, capacity_factor=None, precision="fp32").loss
    assert result["val_loss"] == pytest.approx(by_hand, abs=1e-5)
    events = EventAccumulator(str(run)).Reload()
    logged = [event.value for event in events.Scalars("val/loss")]
    assert len(logged) == 2 and logged[-1] == pytest.approx(by_hand, abs=1e-5)
    assert result["best_val_loss"] == pytest.approx(min(logged), abs=1e-5)
    for event in (events.Scalars(f"train/{name}")[0].value for name in ("balance_loss", "z_loss", "importance_loss")):
        assert event > 1e-3  # so that a validation loss which held one of them would have shown


# 4


@pytest.mark.parametrize("eval_capacity_factor", [None, 0.5])
def test_4_evaluation_is_without_noise(eval_capacity_factor: float | None) -> None:
    noisy = module_of(eval_capacity_factor=eval_capacity_factor, **NOISE).eval()
    calm = module_of(eval_capacity_factor=eval_capacity_factor).eval()
    calm.load_state_dict(noisy.state_dict())
    ids, targets = batch()
    before = torch.get_rng_state()
    losses = [module._losses(ids, targets).total for module in (noisy, noisy, calm)]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(torch.get_rng_state(), before)  # not even a random number is drawn


@pytest.mark.parametrize("source", NOISE)
def test_4_in_training_each_source_of_noise_is_on(source: str) -> None:
    module, (ids, targets) = module_of(capacity_factor=0.5, **{source: NOISE[source]}), batch()
    assert module._losses(ids, targets).total != module._losses(ids, targets).total


def test_4_validation_within_a_run_is_without_noise(config: Config) -> None:
    config = replace(config, model=replace(config.model, **NOISE))
    result = train(config)
    model, vocabulary = switch_lm.load(Path(config.outputs) / "runs" / "run" / "checkpoints" / "last.ckpt")
    _, ids = split(vocabulary.encode(Path(str(config.data.path)).read_text()))
    by_hand = evaluate(model, ids, context_length=12, batch_size=8, capacity_factor=None, precision="fp32").loss
    assert result["val_loss"] == pytest.approx(by_hand, abs=1e-5)


# 5


@pytest.mark.parametrize("capacity_factor", [None, 4.0])
def test_5_jitter_changes_what_the_router_sees_and_not_what_the_experts_get(capacity_factor: float | None) -> None:
    module = layer(router_jitter=0.3, capacity_factor=capacity_factor)
    x_BSD = torch.randn(2, 20, 8)
    given = x_BSD.clone()
    y_BSD, routing = module(x_BSD)
    assert torch.equal(x_BSD, given)
    clean = given.flatten(0, 1) @ module.w_router_DE
    assert not torch.allclose(routing.logits_TE, clean, atol=1e-2)
    for t, x_D in enumerate(given.flatten(0, 1)):
        e = int(routing.expert_TK[t, 0])
        expert_D = (x_D @ module.experts.w_in_EDF[e]).relu() @ module.experts.w_out_EFD[e]
        assert torch.allclose(y_BSD.flatten(0, 1)[t], routing.gate_TK[t] * expert_D, atol=1e-5)
    assert torch.allclose(module.eval()(x_BSD)[1].logits_TE, clean)


# 6


def test_6_what_ran_between_does_not_change_the_next_loss() -> None:
    module, (ids, targets) = module_of(alpha=1.0, z_loss=1.0, importance=1.0), batch()
    first = module._losses(ids, targets)
    with torch.no_grad():
        module.eval()
        module.model(ids[:1], cache=module.model.new_cache())
        module.model(ids)
        module.train()
        module.model(ids.flip(0))
    again = module._losses(ids, targets)
    assert [value.item() for value in again[:5]] == [value.item() for value in first[:5]]


def test_6_a_forward_pass_leaves_nothing_on_the_modules() -> None:
    module, (ids, _) = module_of(shared_expert=True, selection_bias_rate=0.1), batch()

    def attributes() -> list[tuple[str, list[str], str]]:
        return [(name, sorted(vars(part)), repr(part.extra_repr())) for name, part in module.model.named_modules()]

    def lists() -> list[int]:
        return [len(v) for part in module.model.modules() for v in vars(part).values() if isinstance(v, list)]

    before, lengths, state = attributes(), lists(), copy.deepcopy(module.state_dict())
    module.model(ids)
    assert (attributes(), lists()) == (before, lengths)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_6_a_sample_written_during_training_does_not_change_the_run(config: Config) -> None:
    with_sample = replace(config, name="sample", logger=replace(config.logger, sample_length=5, sample_prompt="a"))
    assert train(config)["val_loss"] == train(with_sample)["val_loss"]


def test_6_the_one_state_is_a_selection_bias_and_only_an_optimizer_step_moves_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its rate, towards the experts that were selected less than the mean by all micro-batches together."""
    loads, biases = [], []
    real = SwitchFeedForward.forward

    def noted(self: SwitchFeedForward, *args: Any, **kwargs: Any) -> Any:
        y_BSD, routing = real(self, *args, **kwargs)
        if self.training and self.selection_bias_E is not None:
            loads.append(routing.load_E)
            biases.append(self.selection_bias_E.clone())
        return y_BSD, routing

    monkeypatch.setattr(SwitchFeedForward, "forward", noted)
    biased = replace(config.model, selection_bias_rate=0.01)
    train(replace(config, model=biased, trainer=replace(config.trainer, max_steps=1, accumulate=2)))
    model, _ = switch_lm.load(Path(config.outputs) / "runs" / "run" / "checkpoints" / "last.ckpt")
    assert len(loads) == 4 and not torch.stack(biases).any()  # two micro-batches of two layers
    for number in (0, 1):
        load_E = loads[number] + loads[2 + number]
        moved_E = 0.01 * (load_E.float().mean() - load_E).sign()
        assert moved_E.any()
        assert torch.equal(model.get_buffer(f"blocks.{number}.ffn.selection_bias_E"), moved_E)


# 7


def test_7_two_layers_that_are_each_unbalanced_do_not_make_a_balanced_one() -> None:
    sure = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    layers = [route(logits.expand(10, 2), capacity=None) for logits in sure]
    assert float(summed(load_balancing_loss, layers)) == pytest.approx(4.0)  # E + E; as one heap of tokens it were 1


def test_7_the_balance_loss_of_a_model_is_that_of_its_layers_added() -> None:
    ids, targets = batch()
    losses = module_of(num_layers=3)._losses(ids, targets)
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
    stated = [c.flops_per_token(11, num_tokens) for c in (config, replace(config, switch_every=0))]
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
