"""Which optimizer updates which parameter, and how."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor, nn

from switch_lm.model.transformer import SwitchLM
from switch_lm.optim.base import build_optimizer
from switch_lm.optim.joint import JointOptimizer
from switch_lm.optim.muon import BatchedMuon, StackedMuon, orthogonalize
from switch_lm.optim.options import AdamWOptions, MuonOptions
from switch_lm.optim.schedule import learning_rate_factor, nothing_to_learn


def model() -> SwitchLM:
    return tiny_model(7, num_experts=3, switch_every=2).train()


def step(module: SwitchLM, optimizer: JointOptimizer) -> None:
    torch.manual_seed(1)  # the router's jitter
    module.zero_grad()
    module(torch.arange(20).view(2, 10) % 7).logits.square().mean().backward()
    optimizer.step()


def test_muon_updates_the_hidden_matrices_and_adamw_the_rest() -> None:
    module = model()
    optimizer = build_optimizer(module, MuonOptions(), precision="fp32")
    names = {id(p): name for name, p in module.named_parameters()}
    adamw, muon, stacked = [
        {names[id(p)] for group in part.param_groups for p in group["params"]} for part in optimizer.optimizers
    ]
    assert stacked == {"blocks.1.ffn.experts.w_in_EDF", "blocks.1.ffn.experts.w_out_EFD"}
    attention = {f"blocks.{i}.attention.{part}.weight" for i in (0, 1) for part in ("qkv", "out")}
    assert muon == attention | {"blocks.0.ffn.w_in.weight", "blocks.0.ffn.w_out.weight"}
    assert {"embedding.weight", "head.weight", "blocks.1.ffn.router.w_DE", "norm.weight"} < adamw
    assert adamw | muon | stacked == set(names.values())


def test_norms_do_not_decay() -> None:
    optimizer = build_optimizer(model(), MuonOptions(), precision="fp32")
    assert all(p.dim() >= 2 for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"])


@pytest.mark.parametrize("shape", [(5, 8, 20), (5, 20, 8)])
def test_orthogonalizing_brings_every_singular_value_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    update = orthogonalize(torch.randn(shape), dtype=torch.float32)
    values = torch.linalg.svdvals(update)
    assert update.shape == shape
    assert values.min() > 0.6 and values.max() < 1.3


def newton_schulz(x: Tensor) -> Tensor:
    """Five iterations as published, each on x itself."""
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("decades", [0, 3, 6])  # of singular values
def test_iterations_on_the_gram_matrix_are_as_exact_as_those_on_the_matrix(decades: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 256) * torch.logspace(0, -decades, 64)[:, None]
    exact = newton_schulz(x.double())

    def error(update: Tensor) -> float:
        return float((update.double() - exact).norm() / exact.norm())

    assert error(orthogonalize(x, dtype=torch.float32)) < 1e-4
    assert error(orthogonalize(x)) < 1.5 * error(newton_schulz(x.bfloat16())) < 0.06


def test_batched_muon_equals_torchs_muon_on_each_matrix() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((6, 10), (10, 6), (6, 10))]
    many, singles = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    ours = BatchedMuon(many, lr=0.1, weight_decay=0.1)
    theirs = torch.optim.Muon(singles, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for one, other in zip(many, singles, strict=True):
            one.grad = other.grad = torch.randn_like(one)
        ours.step()
        theirs.step()
    for one, other in zip(many, singles, strict=True):
        assert torch.allclose(one, other, atol=0.05)  # bf16: each is 4% from exact


def test_stacked_muon_equals_torchs_muon_on_each_expert() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 6, 10))
    singles = [nn.Parameter(expert.detach().T.clone()) for expert in stack]  # torch counts (out, in)
    ours = StackedMuon([stack], lr=0.1, weight_decay=0.1, dtype=torch.bfloat16)
    theirs = torch.optim.Muon(singles, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        grad = torch.randn(3, 6, 10)
        stack.grad = grad
        for e, single in enumerate(singles):
            single.grad = grad[e].T.clone()
        ours.step()
        theirs.step()
    for e, single in enumerate(singles):
        assert torch.allclose(stack[e], single.T, atol=0.02)  # bf16 products in another order


def test_stacks_take_turns_and_move_as_many_times_as_far() -> None:
    torch.manual_seed(0)
    start, grad = torch.randn(2, 6, 10), torch.randn(2, 6, 10)
    stacks, each_step = ([nn.Parameter(start.clone()) for _ in range(3)] for _ in range(2))
    ours = StackedMuon(stacks, lr=0.1, weight_decay=0.0, every=3, dtype=torch.float32)
    plain = StackedMuon(each_step, lr=0.1, weight_decay=0.0, dtype=torch.float32)
    moved = []
    for _ in range(6):
        before = [stack.detach().clone() for stack in stacks]
        for stack in [*stacks, *each_step]:
            stack.grad = grad  # always the same: so is its orthogonalised momentum
        ours.step()
        plain.step()
        moved.append([not torch.equal(a, b) for a, b in zip(before, stacks, strict=True)])
    assert moved == [[i == turn for i in range(3)] for turn in (2, 1, 0, 2, 1, 0)]
    torch.testing.assert_close(stacks, each_step, rtol=1e-4, atol=1e-4)


def test_momentum_includes_the_gradients_of_steps_without_an_update() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 10), torch.randn(2, 6, 10)
    stack = nn.Parameter(torch.zeros(2, 6, 10))
    optimizer = StackedMuon([stack], lr=0.1, weight_decay=0.0, momentum=0.9, every=2, dtype=torch.float32)
    for grad in (first, second):
        stack.grad = grad
        optimizer.step()
    momentum = 0.9 * 0.1 * first + 0.1 * second
    want = -0.2 * (10 / 6) ** 0.5 * orthogonalize(0.1 * second + 0.9 * momentum, dtype=torch.float32)  # Nesterov
    torch.testing.assert_close(stack.detach(), want, rtol=1e-4, atol=1e-5)


def test_a_joint_optimizer_continues_from_its_state_as_if_never_stopped() -> None:
    whole, first = model(), model()
    optimizer = build_optimizer(whole, MuonOptions(), precision="fp32")
    for _ in range(4):
        step(whole, optimizer)
    before = build_optimizer(first, MuonOptions(), precision="fp32")
    for _ in range(2):
        step(first, before)
    second = model()
    second.load_state_dict(first.state_dict())
    after = build_optimizer(second, MuonOptions(), precision="fp32")
    after.load_state_dict(before.state_dict())
    for _ in range(2):
        step(second, after)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_schedule_reaches_every_optimizer_even_after_a_restart() -> None:
    optimizer = build_optimizer(model(), MuonOptions(), precision="fp32")
    optimizer.load_state_dict(optimizer.state_dict())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.optimizers] == [1.5e-3, 0.01, 0.01]


def factors(max_steps: int, d_model: int = 8, **options: Any) -> list[float]:
    optim = AdamWOptions(**options)
    return [learning_rate_factor(step, optim, max_steps=max_steps, d_model=d_model) for step in range(max_steps)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_linear_and_cosine_rise_to_one_and_end_at_their_minimum(schedule: str) -> None:
    factor = factors(100, schedule=schedule, warmup_steps=10, min_factor=0.1)
    assert factor[0] == pytest.approx(0.1) and factor[9] == factor[10] == pytest.approx(1.0)
    assert factor[99] == pytest.approx(0.1)
    middle = 0.55 if schedule == "linear" else 0.1 + 0.45 * (1 + math.cos(math.pi * 0.5))
    assert factor[10] > factor[54] > factor[99] and (factor[54] + factor[55]) / 2 == pytest.approx(middle, abs=0.01)
    quarter = 0.75 if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * 0.25))  # of the way down
    assert factors(101, schedule=schedule, warmup_steps=0)[25] == pytest.approx(quarter)


def test_noam_is_that_of_the_transformer_paper() -> None:
    factor = factors(16_000, d_model=512, schedule="noam", warmup_steps=4000)
    assert factor[3999] == pytest.approx(512**-0.5 * 4000**-0.5)
    assert [factor[1999], factor[15999]] == pytest.approx([factor[3999] / 2] * 2)


@pytest.mark.parametrize(("num_experts", "every"), [(8, 2), (31, 2), (32, 4), (128, 4)])
def test_many_experts_are_updated_every_fourth_step(num_experts: int, every: int) -> None:
    assert MuonOptions().steps_between_moves(num_experts) == every
    assert MuonOptions(expert_update_every=3).steps_between_moves(num_experts) == 3
    stacked = build_optimizer(tiny_model(7, num_experts=num_experts), MuonOptions(), precision="fp32").optimizers[-1]
    assert [group["every"] for group in stacked.param_groups] == [every]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("how", "after"), [("rewarm", 50), ("rewarm", 30), ("decay", 30)])
def test_a_later_leg_warms_up_again_or_decays_from_the_rate_that_was_reached(
    schedule: str, how: str, after: int
) -> None:
    options: dict[str, Any] = {"schedule": schedule, "warmup_steps": 20, "min_factor": 0.1}
    before, factor = factors(50, **options), factors(after + 100, **options, legs=[f"{how} after {after} of 50"])
    assert factor[:after] == before[:after]
    reached = before[after - 1]  # 0.1 at the end
    assert reached == pytest.approx(0.1) if after == 50 else reached > 0.5

    def down(share: float) -> float:
        return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))

    if how == "rewarm":  # a tenth of the leg, where that is below warmup_steps
        rise = [reached + (1 - reached) * n / 10 for n in range(1, 11)]
        want = rise + [0.1 + 0.9 * down(n / 89) for n in range(90)]
    else:
        want = [0.1 + (reached - 0.1) * down(n / 100) for n in range(1, 101)]
    assert factor[after:] == pytest.approx(want)
    ended = AdamWOptions(schedule=schedule, legs=["decay after 50 of 50"])
    assert str(nothing_to_learn(ended, max_steps=90, d_model=8)).startswith("optim.on_resume=decay: the learning rate")
    again = factors(after + 120, **options, legs=[f"{how} after {after} of 50", f"decay after 80 of {after + 100}"])
    assert again[:80] == factor[:80] and factor[79] > again[80] and again[-1] == pytest.approx(0.1)
