"""What a model loses with its experts: one without tokens costs nothing, and the lowest go first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT, MakeRun, tiny_model
from torch import Tensor

from switch_lm.inspect import main
from switch_lm.model.transformer import SwitchLM
from switch_lm.probe.pruning import BY_LOAD, BY_OUTPUT, UnprunableError, contributions, pruning
from switch_lm.probe.reading import Probe
from switch_lm.probe.subject import calls
from switch_lm.routers.options import BalanceOptions, ExpertChoiceOptions, HashOptions, SigmoidOptions
from switch_lm.routers.routing import Routing
from switch_lm.routers.switch import SwitchRouter
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
PROBE = Probe.of(VOCABULARY.encode(TEXT), context_length=16, num_windows=16)


def planted(**changes: Any) -> SwitchLM:
    model = tiny_model(len(VOCABULARY), **changes)
    for router in model.routers:
        if router.bias_E is not None:
            router.bias_E.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0])[: router.num_experts])
    return model


def loss_of_the_rest(kept_LE: list[list[int]], **changes: Any) -> float:
    """Of the model that was built without the others, on the windows that pruning scores."""
    whole, rest = planted(**changes), planted(**changes, num_experts=len(kept_LE[0]))
    state = whole.state_dict()
    for layer, kept_E in enumerate(kept_LE):
        for name, axis in (("router.w_DE", 1), ("router.bias_E", 0), ("experts.w_in_EDF", 0), ("experts.w_out_EFD", 0)):
            if (key := f"blocks.{layer}.ffn.{name}") in state:
                state[key] = state[key].index_select(axis, torch.tensor(kept_E))
    rest.load_state_dict(state)
    with torch.no_grad():
        logits = rest(PROBE.ids_BS[1::2]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), PROBE.target_BS[1::2].flatten()).item()


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 2}, {"router": SigmoidOptions(top_k=2), "balance": BalanceOptions(name="sign")}],
    ids=["switch", "topk", "sigmoid"],
)
def test_what_is_left_is_the_model_without_the_experts_of_the_lowest_load_or_output(changes: dict[str, Any]) -> None:
    """The scores and losses of a plain loop, and of a smaller model; the model itself stays as it was."""
    model = planted(**changes)
    with torch.no_grad(), calls(model) as seen:
        model(PROBE.ids_BS[::2])
    load_LE, output_LE = [[0] * 4, [0] * 4], [[0.0] * 4, [0.0] * 4]
    for layer, call in enumerate(seen):
        x_TD, experts = call.x_BSD.flatten(0, 1), call.layer.experts
        for token, expert, gate in zip(call.routing.token_N, call.routing.expert_N, call.routing.gate_N, strict=True):
            y_D = experts.activation(x_TD[token] @ experts.w_in_EDF[expert]) @ experts.w_out_EFD[expert]
            load_LE[layer][expert] += 1
            output_LE[layer][expert] += (gate * y_D.square().sum().sqrt()).item()
    mean_LE = [[y / max(1, n) for y, n in zip(*one, strict=True)] for one in zip(output_LE, load_LE, strict=True)]
    measured = contributions(model, PROBE.ids_BS[::2])
    assert measured[0].tolist() == load_LE
    torch.testing.assert_close(measured[1], torch.tensor(mean_LE))
    result = {(x.rule, x.kept): x for x in pruning(model, PROBE)}
    top_k = changes.get("top_k", 2 if changes else 1)
    assert {kept for _, kept in result} == set(range(top_k, 4))
    for rule, value_LE in ((BY_LOAD, load_LE), (BY_OUTPUT, mean_LE)):
        for kept in range(top_k, 4):
            order = [sorted(range(4), key=lambda e: value_E[e]) for value_E in value_LE]
            rest = loss_of_the_rest([sorted(order_E[4 - kept :]) for order_E in order], **changes)
            one = result[rule, kept]
            assert one.loss + one.cost.mean == pytest.approx(rest, abs=1e-5)
            assert list(one.draws) == pytest.approx([one.cost.mean]) and one.cost.count == 8
    assert torch.equal(model(PROBE.ids_BS).logits, planted(**changes)(PROBE.ids_BS).logits)


@pytest.mark.parametrize("changes", [{"gate_scale": "straight_through"}, {"router": SigmoidOptions()}], ids=str)
def test_an_expert_without_tokens_goes_first_and_costs_nothing(changes: dict[str, Any]) -> None:
    """Its score would be in no gate of the others: of a softmax it would have a share."""
    model = tiny_model(len(VOCABULARY), **changes)
    for w_DE in model.router_parameters():
        w_DE.data[:, 2] = w_DE.data[:, 1]  # among equal experts the first is selected
    result = {(x.rule, x.kept): x.cost for x in pruning(model, PROBE)}
    for rule in (BY_LOAD, BY_OUTPUT):
        assert (result[rule, 3].mean, result[rule, 3].error) == (0.0, None)
        assert result[rule, 2].error is not None and abs(result[rule, 2].mean) > 1e-3
    assert result["at random", 3].mean != 0.0


def test_a_router_that_does_not_choose_by_its_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assign = SwitchRouter.assign

    def by_the_input(self: SwitchRouter, x_TD: Tensor, logits_TE: Tensor, **others: Any) -> Routing:
        with monkeypatch.context() as patch:
            patch.delitem(self.__dict__, "biased", raising=False)  # as if it had no use for it
            return assign(self, x_TD, x_TD @ torch.as_tensor(self.w_DE), **others)

    monkeypatch.setattr(SwitchRouter, "assign", by_the_input)
    with pytest.raises(UnprunableError, match="router=switch does not choose experts by its logits"):
        pruning(planted(), PROBE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"switch_every": 0}, "is a dense model"),
        ({"router": HashOptions()}, "router=hash: its tokens have no next choice of an expert: give a model"),
        ({"router": ExpertChoiceOptions()}, "router=expert_choice: its tokens have no next choice"),
        ({"num_experts": 1}, "num_experts=1 are all that a token chooses: give a model with more"),
    ],
    ids=str,
)
def test_a_model_without_an_expert_to_remove_is_refused_in_one_line(
    changes: dict[str, Any], message: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny", model=tiny_model(**changes))
    assert main(["--run", "tiny", "--prune"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("model: ")]
    assert message in line and not Path("outputs/runs/tiny/inspect").exists()
