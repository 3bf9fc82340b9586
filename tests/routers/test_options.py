"""Gates, selection, noise and losses of the router, against closed forms."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from conftest import TEXT, tiny_model
from worked import FIVE_TOKENS, factors, logits_of, route, routed, worked

from switch_lm.config.schema import Config
from switch_lm.model.config import ModelConfig
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.losses import importance_loss, load_balancing_loss, router_z_loss
from switch_lm.routers.noise import jitter
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions, TopKOptions
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.module import SwitchModule


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- Gates


def test_renormalised_gates_add_up_to_one_and_raw_ones_do_not() -> None:
    assert routed(FIVE_TOKENS, top_k=2, renormalize_gates=True).gate_TK.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert routed(FIVE_TOKENS, top_k=2).gate_TK.sum(1).tolist() == pytest.approx([0.8, 0.9, 0.8, 0.7, 0.8])


@pytest.mark.parametrize("scale", ["probability", "straight_through"])
def test_a_gate_is_p_with_its_gradient_or_one_with_the_gradient_of_log_p(scale: str) -> None:
    """A softmax after the selection would make the gate a constant 1 (see test_known_faults.py)."""
    logits_TE = logits_of(FIVE_TOKENS).requires_grad_()
    gate_TK = route(logits_TE, capacity=None, rule=TopKOptions(top_k=1, gate_scale=scale)).gate_TK
    (grad_TE,) = torch.autograd.grad(gate_TK.sum(), logits_TE)
    gates = [0.7, 0.8, 0.6, 0.5, 0.7] if scale == "probability" else [1.0] * 5
    assert gate_TK.flatten().tolist() == pytest.approx(gates)
    of_log_p = [
        [0.3, -0.1, -0.1, -0.1],  # d log p / d logits: 1 - p for the selected expert, -p for the others
        [0.2, -0.1, 0.0, -0.1],
        [0.4, -0.1, -0.1, -0.2],
        [0.5, -0.2, -0.1, -0.2],
        [-0.1, -0.1, 0.3, -0.1],
    ]
    expected = [[gate * value for value in row] for gate, row in zip(gates, of_log_p, strict=True)]
    assert grad_TE.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_a_straight_through_gate_is_finite_where_a_probability_underflows_to_zero() -> None:
    logits_TE = torch.tensor([[300.0, 0.0]], requires_grad=True)
    gate_TK = route(logits_TE, capacity=None, rule=TopKOptions(top_k=2, gate_scale="straight_through")).gate_TK
    gate_TK.sum().backward()
    assert logits_TE.grad is not None and logits_TE.grad.isfinite().all()
    assert gate_TK.isfinite().all()


# --- Selection


def test_an_expert_is_sampled_with_its_probability_and_only_in_training() -> None:
    probs, draws = [0.5, 0.3, 0.15, 0.05], 40_000
    drawn = routed([probs] * draws, selection="sample", training=True)
    for share, p in zip(drawn.fraction_E.tolist(), probs, strict=True):
        assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / draws))
    assert torch.equal(drawn.gate_TK, drawn.probs_TE.gather(1, drawn.expert_TK))
    assert routed([probs] * 100, selection="sample").load_E.tolist() == [100, 0, 0, 0]


def test_several_experts_are_sampled_one_after_another_without_replacement() -> None:
    p, draws = [0.5, 0.3, 0.2], 40_000
    drawn = routed([p] * draws, selection="sample", top_k=2, training=True).expert_TK
    pairs = Counter(map(tuple, drawn.tolist()))
    assert set(pairs) == set(permutations(range(3), 2))
    for (first, second), count in pairs.items():
        share = p[first] * p[second] / (1 - p[first])
        assert count / draws == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / draws))


def test_a_selection_bias_moves_the_choice_and_neither_gate_nor_mean_probability() -> None:
    probs = [[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]
    routing = routed(probs, bias_E=torch.tensor([0.0, 0.3]))
    assert routing.expert_TK.flatten().tolist() == [1, 0, 1]  # 0.4 + 0.3 > 0.6, but 0.1 + 0.3 < 0.9
    assert routing.gate_TK.flatten().tolist() == pytest.approx([0.4, 0.9, 0.8])
    assert routing.fraction_E.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert routing.mean_prob_E.tolist() == pytest.approx([1.7 / 3, 1.3 / 3])


@pytest.mark.parametrize(("balance", "buffers"), [("loss", []), ("none", []), ("sign", ["router.bias_E"])])
def test_a_selection_bias_is_the_only_buffer(balance: str, buffers: list[str]) -> None:
    module, _ = worked(FIVE_TOKENS, balance=BalanceOptions(name=balance))
    assert [name for name, _ in module.named_buffers()] == buffers


# --- Noise, and the other parts of a layer


def test_jitter_is_uniform_within_epsilon_and_does_not_change_its_input() -> None:
    x_TD = torch.full((1000, 100), 2.0)
    ratio_TD = jitter(x_TD, 0.1) / 2.0
    assert (x_TD == 2.0).all()
    assert 0.9 <= ratio_TD.min() < 0.901 and 1.099 < ratio_TD.max() <= 1.1
    assert ratio_TD.mean().item() == pytest.approx(1.0, abs=5 * 0.1 / math.sqrt(3 * 1e5))
    assert ratio_TD.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)


def test_jitter_is_one_percent_by_default() -> None:
    assert RouterOptions().jitter == 0.01
    assert SwitchFeedForward(d_model=2, d_ff=2, num_experts=2).router.options.jitter == 0.01


def test_input_dropout_reaches_only_the_router_and_only_in_training() -> None:
    module, x_BSD = worked([[0.2, 0.8]] * 400, input_dropout=0.25)
    y_BSD, routing = module(x_BSD)
    uniform, sharper = [0.5, 0.5], logits_of([[0.2, 0.8]]).div(0.75).softmax(-1)[0].tolist()
    blind_T = routing.probs_TE[:, 0] == 0.5
    assert routing.probs_TE[blind_T].tolist() == [uniform] * int(blind_T.sum())
    assert routing.probs_TE[~blind_T][0].tolist() == pytest.approx(sharper)
    assert torch.allclose(routing.probs_TE[~blind_T], routing.probs_TE[~blind_T][0])
    assert blind_T.float().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 400))
    clean = routing.gate_TK[:, 0] * (routing.expert_TK[:, 0] + 1)  # gate x what the expert computes from a clean input
    assert factors(y_BSD) == pytest.approx(clean.tolist())
    assert torch.equal(module.eval()(x_BSD)[1].logits_TE, logits_of([[0.2, 0.8]] * 400))


@pytest.mark.parametrize("capacity_factor", [None, 2.0])
def test_expert_dropout_removes_and_scales_hidden_units_and_only_in_training(capacity_factor: float | None) -> None:
    module, x_BSD = worked([[0.1, 0.9]] * 300, expert_dropout=0.4, capacity_factor=capacity_factor)
    values = torch.tensor(factors(module(x_BSD)[0]))
    lost = values == 0
    assert torch.allclose(values[~lost], torch.tensor(0.9 * 2 / 0.6))
    assert lost.float().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.4 * 0.6 / 300))
    assert factors(module.eval()(x_BSD)[0]) == pytest.approx([0.9 * 2] * 300)


def test_a_shared_expert_is_added_for_every_token_dropped_or_not_and_has_no_gate() -> None:
    module, x_BSD = worked(FIVE_TOKENS, capacity_factor=1.0, shared_expert=True)
    assert module.shared is not None
    with torch.no_grad():
        module.shared.w_in.weight.copy_(torch.eye(5))
        module.shared.w_out.weight.copy_(10 * torch.eye(5))
    assert factors(module(x_BSD)[0]) == pytest.approx([10 + 0.7, 10 + 0.8, 10.0, 10.0, 10 + 0.7 * 3])


def test_evaluation_has_a_capacity_of_its_own() -> None:
    module, x_BSD = worked([[0.7, 0.3]] * 8, capacity_factor=0.5, eval_capacity_factor=2.0)
    assert (module(x_BSD)[1].capacity, module.eval()(x_BSD)[1].capacity) == (2, 8)
    assert ModelConfig().eval_capacity_factor is None


@pytest.mark.parametrize(("every", "switch"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2])])
def test_every_nth_block_has_a_switch_layer(every: int, switch: list[int]) -> None:
    config = ModelConfig(num_layers=5, switch_every=every)
    assert [block for block in range(5) if config.is_switch(block)] == switch
    assert config.num_switch_layers == len(switch)


@pytest.mark.parametrize("layers", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("every", [0, 1])
def test_the_blocks_that_are_named_have_a_switch_layer_whatever_switch_every_is(layers: list[int], every: int) -> None:
    config = ModelConfig(num_layers=5, switch_layers=layers, switch_every=every, d_model=16, num_heads=2, d_ff=24)
    model = SwitchLM(config, 11)
    assert [n for n, block in enumerate(model.blocks) if isinstance(block.ffn, SwitchFeedForward)] == layers
    assert config.num_switch_layers == len(model.routers) == len(layers)
    assert config.num_params(11, SwitchOptions()) == sum(p.numel() for p in model.parameters())


# --- The other losses


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_summed_exponentials() -> None:
    logits_TE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-2.0, -2.0, -2.0, -2.0]], requires_grad=True)
    z = [1 + math.log(4), -2 + math.log(4)]
    loss = router_z_loss(route(logits_TE, capacity=None))
    assert loss.item() == pytest.approx((z[0] ** 2 + z[1] ** 2) / 2)
    (grad_TE,) = torch.autograd.grad(loss, logits_TE)
    assert grad_TE.tolist() == [pytest.approx([value / 4] * 4) for value in z]  # 2 z p / T
    assert float(router_z_loss(routed(FIVE_TOKENS))) == pytest.approx(0.0, abs=1e-10)  # logits are log p


def test_the_importance_loss_is_the_squared_variation_of_summed_gates() -> None:
    summed = [0.7 + 0.8 + 0.6 + 0.5, 0.0, 0.7, 0.0]
    mean = sum(summed) / 4
    by_hand = sum((value - mean) ** 2 for value in summed) / 4 / mean**2
    assert float(importance_loss(routed(FIVE_TOKENS))) == pytest.approx(by_hand)
    even = [[0.7, 0.3], [0.3, 0.7]]
    assert float(importance_loss(routed(even))) == pytest.approx(0.0, abs=1e-12)
    assert float(importance_loss(routed([[0.9, 0.1]] * 3))) == pytest.approx(1.0)  # all on one of E: E - 1


def test_the_total_is_the_language_loss_and_each_other_loss_times_its_weight() -> None:
    config = Config(model=tiny_model().config, alpha=0.5, z_loss=0.25, importance=0.125)
    module = SwitchModule(config, Vocabulary.of(TEXT), corpus_sha256="", precision="fp32")
    ids = torch.arange(48).view(3, 16) % 7
    losses = module.losses(ids, (ids + 1) % 7)
    assert losses.router_z is not None and losses.importance is not None
    parts = losses.language + 0.5 * losses.routers["balance"] + 0.25 * losses.router_z + 0.125 * losses.importance
    assert losses.total.item() == pytest.approx(parts.item())
    for loss, of_layer in (
        (losses.routers["balance"], load_balancing_loss),
        (losses.router_z, router_z_loss),
        (losses.importance, importance_loss),
    ):
        assert loss.item() > 0
        assert loss.item() == pytest.approx(sum(of_layer(routing).item() for routing in losses.routings))


# --- Random drops


@pytest.mark.parametrize("capacity", [None, 3000])
def test_random_drops_take_their_share_of_all_choices_in_training_and_none_in_evaluation(capacity: int | None) -> None:
    logits_TE, rule = torch.randn(10_000, 4), TopKOptions(top_k=2, random_drop_rate=0.2)
    trained = route(logits_TE, capacity=capacity, rule=rule, training=True)
    plain = route(logits_TE, capacity=capacity, rule=TopKOptions(top_k=2))
    kept = int((trained.kept_TK & plain.kept_TK).sum())
    assert kept == int(trained.kept_TK.sum())  # a random drop does not make room for another choice
    assert kept / int(plain.kept_TK.sum()) == pytest.approx(0.8, abs=4 * math.sqrt(0.2 * 0.8 / 15_000))
    assert torch.equal(trained.load_E, plain.load_E) and torch.equal(trained.gate_TK, plain.gate_TK)
    evaluated = route(logits_TE, capacity=capacity, rule=rule, training=False)
    assert torch.equal(evaluated.kept_TK, plain.kept_TK)
