"""Our Switch layer and that of Hugging Face's transformers, with the same weights, under our sequence groups."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from small_models import router_of
from torch import Tensor, nn
from worked import route

from switch_lm.model.config import ModelConfig
from switch_lm.model.losses import summed
from switch_lm.model.switch import SwitchFeedForward
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.losses import load_balancing_loss, router_z_loss
from switch_lm.routers.options import TopKOptions

NUM_EXPERTS, D_MODEL, D_FF = 4, 6, 10
B, S = 3, 8
BY_ROW = TopKOptions(top_k=1, capacity_group="sequence")


if find_spec("transformers") is None:
    pytest.skip("no transformers: get it with `make peers`", allow_module_level=True)


@pytest.fixture(scope="module")
def hugging() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of while it is imported is its own affair
        return import_module("transformers.models.switch_transformers.modeling_switch_transformers")


def their_config(hugging: Any, **changes: Any) -> Any:
    sizes = {"d_model": D_MODEL, "d_ff": D_FF, "num_experts": NUM_EXPERTS, "expert_capacity": S}
    quiet = {"router_jitter_noise": 0.0, "dropout_rate": 0.0}
    return hugging.SwitchTransformersConfig(**sizes | quiet | changes)


def their_layer(hugging: Any, **changes: Any) -> Any:
    """Its layer in training, with random weights large enough to tell experts apart."""
    torch.manual_seed(3)
    layer = hugging.SwitchTransformersSparseMLP(their_config(hugging, **changes))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.train()


def our_layer(
    theirs: Any, capacity_factor: float | None, *, jitter: float = 0.0, activation: str = "relu"
) -> SwitchFeedForward:
    """Our layer of the same weights, each row with its own slots."""
    router = router_of(replace(BY_ROW, jitter=jitter), num_experts=NUM_EXPERTS, d_model=D_MODEL)
    sizes: dict[str, Any] = {"d_model": D_MODEL, "d_ff": D_FF, "num_experts": NUM_EXPERTS}
    layer = SwitchFeedForward(**sizes, capacity_factor=capacity_factor, router=router, activation=activation)
    with torch.no_grad():
        for ours, same in zip(layer.parameters(), as_ours(theirs, lambda parameter: parameter), strict=True):
            ours.copy_(same)
    return layer


def as_ours(theirs: Any, read: Any) -> list[Tensor]:
    """Its router and experts, or what `read` gives of each, stacked and turned as our parameters are."""
    experts = [theirs.experts[f"expert_{e}"] for e in range(NUM_EXPERTS)]
    return [
        read(theirs.router.classifier.weight).T,
        torch.stack([read(expert.wi.weight).T for expert in experts]),
        torch.stack([read(expert.wo.weight).T for expert in experts]),
    ]


def gradient(parameter: Tensor) -> Tensor:
    """Its gradient; an expert without tokens has none at all."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize(
    ("theirs_named", "activation"), [("relu", "relu"), ("gelu", "gelu"), ("relu2", "relu_squared")]
)
@pytest.mark.parametrize(("capacity_factor", "capacity"), [(0.5, 1), (1.0, 2), (1.5, 3), (4.0, 8)])
def test_outputs_choices_and_gradients_are_those_of_transformers(
    hugging: Any, capacity_factor: float, capacity: int, theirs_named: str, activation: str
) -> None:
    """Who is dropped (later positions of the row), that a dropped token gets 0, and the raw p as gate, among others."""
    theirs = their_layer(hugging, expert_capacity=capacity, dense_act_fn=theirs_named)
    ours = our_layer(theirs, capacity_factor, activation=activation)
    x, weight = torch.randn(B, S, D_MODEL, requires_grad=True), torch.randn(B, S, D_MODEL)
    x_too = x.detach().clone().requires_grad_()

    y, routing = ours(x)
    y_too, (mask, prob, logits) = theirs(x_too), theirs.router(x_too)
    assert routing.capacity == capacity
    assert (~routing.kept_TK).any() == (capacity <= 3)
    assert (y_too.flatten(0, 1)[~routing.kept_TK[:, 0]] == 0).all()
    assert torch.allclose(y, y_too, atol=1e-6)
    kept_TE = nn.functional.one_hot(routing.expert_TK[:, 0], NUM_EXPERTS) * routing.kept_TK
    assert torch.equal(mask.flatten(0, 1), kept_TE)
    assert torch.allclose(prob.flatten(0, 1), routing.gate_TK, atol=1e-6)
    assert torch.allclose(logits.flatten(0, 1), routing.logits_TE, atol=1e-6)

    (y * weight).sum().backward()
    (y_too * weight).sum().backward()
    assert x.grad is not None and x_too.grad is not None
    assert torch.allclose(x.grad, x_too.grad, atol=1e-5)
    for parameter, wanted in zip(ours.parameters(), as_ours(theirs, gradient), strict=True):
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-3
        assert torch.allclose(parameter.grad, wanted, atol=1e-5)


def test_its_router_z_loss_is_ours(hugging: Any) -> None:
    logits_BSE = torch.randn(B, S, NUM_EXPERTS) * 3
    ours = router_z_loss(route(logits_BSE.flatten(0, 1), capacity=None))
    assert ours.item() == pytest.approx(hugging.router_z_loss_func(logits_BSE).item())


def their_balance_loss(hugging: Any, *layers_BSE: Tensor) -> float:
    """As its language model computes it, out of the logits of all its Switch layers."""
    unpack = hugging.SwitchTransformersForConditionalGeneration._unpack_router_logits
    logits, experts = unpack(None, layers_BSE)
    return float(hugging.load_balancing_loss_func(logits.softmax(-1), experts))


def test_its_balance_loss_of_one_layer_and_one_row_is_ours(hugging: Any) -> None:
    logits_1SE = torch.randn(1, S, NUM_EXPERTS) * 3
    ours = load_balancing_loss(route(logits_1SE[0], capacity=1, rule=BY_ROW))
    assert ours.item() == pytest.approx(their_balance_loss(hugging, logits_1SE))


# --- Where it differs, and why ours does not follow


def test_its_balance_loss_joins_layers_before_it_takes_shares_and_ours_adds_their_losses(hugging: Any) -> None:
    """Two layers, each with all tokens at one expert, make an even whole to it: no balance is asked for (fault 7)."""
    first_1SE = torch.tensor([20.0, 0.0]).expand(1, S, 2)
    second_1SE = first_1SE.flip(-1)
    assert their_balance_loss(hugging, first_1SE, second_1SE) == pytest.approx(1.0)
    ours = [load_balancing_loss(route(logits[0], capacity=None)).item() for logits in (first_1SE, second_1SE)]
    assert ours == pytest.approx([2.0, 2.0])


def test_its_balance_loss_is_the_mean_of_each_rows_and_ours_of_all_tokens_of_the_router_call(hugging: Any) -> None:
    """f and P of the paper are shares of the batch (equations 5 and 6): rows may lean to different experts."""
    one_SE = torch.tensor([20.0, 0.0]).expand(S, 2)
    rows_BSE = torch.stack([one_SE, one_SE.flip(-1)])
    assert their_balance_loss(hugging, rows_BSE) == pytest.approx(2.0)
    assert load_balancing_loss(route(rows_BSE.flatten(0, 1), capacity=None)).item() == pytest.approx(1.0)


@pytest.mark.parametrize(("num_sparse", "has_loss"), [(2, False), (1, True)])
def test_it_balances_a_model_with_dense_blocks_only_and_ours_wherever_there_is_a_switch_layer(
    hugging: Any, num_sparse: int, has_loss: bool
) -> None:
    """It adds the loss where its `sparse_step` is above 1: with a Switch layer in every block there is none."""
    sizes = {"num_heads": 2, "d_kv": 3, "vocab_size": 11, "num_layers": 2, "num_decoder_layers": 2}
    sparse = {"num_sparse_encoder_layers": num_sparse, "num_sparse_decoder_layers": num_sparse}
    model = hugging.SwitchTransformersForConditionalGeneration(their_config(hugging, **sizes, **sparse)).eval()
    mlps = [block.layer[-1].mlp for block in model.decoder.block]
    assert sum(isinstance(mlp, hugging.SwitchTransformersSparseMLP) for mlp in mlps) == num_sparse
    ids = torch.arange(2, 10)[None]
    output = model(input_ids=ids, decoder_input_ids=ids, output_router_logits=True)
    assert (output.encoder_aux_loss > 0) == (output.decoder_aux_loss > 0) == has_loss

    ours = SwitchLM(ModelConfig(num_layers=2, switch_every=2 // num_sparse), vocab_size=11)
    assert (summed(load_balancing_loss, ours(ids).routings) > 0).item()


def test_of_its_masked_choice_an_argmax_books_dropped_tokens_on_the_first_expert_and_ours_stay_apart(
    hugging: Any,
) -> None:
    """Its router returns the choice with the dropped ones masked to 0; up to series 4 the argmax of that made f.

    What was selected, whether it was kept, and the gate are three facts: f is of what was selected.
    """
    theirs = their_layer(hugging, expert_capacity=1)
    with torch.no_grad():
        theirs.router.classifier.weight.zero_()[3] = 1.0
    x = torch.rand(1, S, D_MODEL)  # all to the last expert
    mask, _, logits = theirs.router(x)
    assert mask.argmax(-1).tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]
    assert logits.argmax(-1).unique().tolist() == [3]
    _, routing = our_layer(theirs, 0.5)(x)
    assert (routing.load_E.tolist(), routing.kept_E.tolist()) == ([0, 0, 0, S], [0, 0, 0, 1])


def test_its_capacity_is_a_fixed_number_and_ours_grows_with_the_tokens(hugging: Any) -> None:
    """It has no capacity factor: of rows five times as long it keeps no more (equation 3 has T in it)."""
    theirs = their_layer(hugging, expert_capacity=2)
    ours = our_layer(theirs, 1.0)
    for length, capacity in ((S, 2), (5 * S, 10)):
        x = torch.randn(1, length, D_MODEL)
        assert theirs.router(x)[0].sum(dim=1).max() == 2
        assert ours(x)[1].capacity == capacity


def test_it_drops_in_evaluation_too_and_ours_only_in_training(hugging: Any) -> None:
    """By default our evaluation has no limit, so that prefixes and the cache give the same logits."""
    theirs = their_layer(hugging, expert_capacity=1).eval()
    ours, x = our_layer(theirs, 0.5).eval(), torch.randn(B, S, D_MODEL)
    assert theirs.router(x)[0].sum() < B * S
    assert ours(x)[1].kept_TK.all()


def test_its_jitter_changes_its_input_for_the_experts_too_and_ours_only_what_the_router_sees(hugging: Any) -> None:
    """It multiplies in place, and a cast to a dtype that the input has already makes no copy (fault 5)."""
    theirs = their_layer(hugging, router_jitter_noise=0.3)
    ours = our_layer(theirs, None, jitter=0.3)
    x = torch.randn(B, S, D_MODEL)
    given = x.clone()
    ours(x)
    assert torch.equal(x, given)
    theirs(x)
    assert not torch.allclose(x, given, atol=1e-2)


def test_under_bf16_autocast_its_router_is_not_in_float32_and_ours_is(hugging: Any) -> None:
    """Autocast undoes a cast: it must be off around the product (section 2.4)."""
    theirs = their_layer(hugging)
    ours, x = our_layer(theirs, None), torch.randn(B, S, D_MODEL)
    with torch.autocast("cpu", torch.bfloat16):
        logits, routing = theirs.router(x)[2], ours(x)[1]
    assert logits.dtype == torch.bfloat16
    assert routing.logits_TE.dtype == torch.float32
    assert torch.equal(routing.logits_TE, ours(x)[1].logits_TE)
