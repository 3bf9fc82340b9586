"""A model that starts from another one: what it computes before training, what is trained then, what is refused."""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import folder_of, logged, tiny_model
from small_models import family, short_run
from some_steps import train_steps

from switch_lm.commandline.command import text_of
from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import resolved
from switch_lm.config.schema import Config
from switch_lm.model.upcycle import start_from
from switch_lm.routers.options import BalanceOptions, SwitchOptions
from switch_lm.storage import checkpoint
from switch_lm.storage.checkpoint import read_model
from switch_lm.training.start import train

SAME = SwitchOptions(gate_scale="straight_through", jitter=0.0)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(10, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("switch_every", [1, 2])
def test_one_straight_through_choice_without_capacity_computes_what_the_dense_model_does(switch_every: int) -> None:
    dense, model = tiny_model(10, switch_every=0), tiny_model(10, switch_every=switch_every, router=SAME)
    assert not torch.allclose(logits_of(model), logits_of(dense), atol=1e-2)
    start_from(model, dense)
    assert torch.allclose(logits_of(model), logits_of(dense), atol=1e-5)


def test_routers_keep_their_initial_weights_and_every_expert_is_the_dense_feed_forward() -> None:
    dense, model = tiny_model(10, switch_every=0), tiny_model(10)
    router = model.state_dict()["blocks.1.ffn.router.w_DE"].clone()
    start_from(model, dense)
    weights = model.state_dict()
    assert torch.equal(weights["blocks.1.ffn.router.w_DE"], router)
    for expert in weights["blocks.1.ffn.experts.w_in_EDF"]:
        assert torch.equal(expert, dense.state_dict()["blocks.1.ffn.w_in.weight"].T)


@pytest.mark.parametrize(("switch_every", "tied"), [(0, False), (2, True)])
def test_the_same_layers_compute_the_same_and_characters_keep_their_rows(switch_every: int, tied: bool) -> None:
    layers: dict[str, Any] = {"switch_every": switch_every, "tie_embeddings": tied}
    source, model = tiny_model(10, **layers), tiny_model(11, **layers)
    for weight in source.parameters():
        weight.data.mul_(1.5)  # both are drawn alike
    drawn = model.embedding.weight.detach().clone()
    start_from(model, source, characters=("Zabcdefghij", "jihgfedcbY"))
    ids = torch.randint(9, (3, 12), generator=torch.Generator().manual_seed(0))  # j to b
    with torch.no_grad():
        here, there = model(10 - ids).logits, source(ids).logits
    assert torch.allclose(here[..., 2:], there[..., :9].flip(-1), atol=1e-5)
    assert torch.equal(model.embedding.weight[:2], drawn[:2])  # Z and a are new, and Y is dropped


def test_a_hash_router_keeps_the_expert_of_a_character() -> None:
    source, model = (tiny_model(10, router=family("hash")) for _ in range(2))
    for router in source.routers:
        router.get_buffer("expert_V")[:] = torch.tensor([3, 1, 2, 0, 3, 1, 2, 0, 1, 1])
    start_from(model, source, characters=("bcdefghijk", "abcdefghij"))
    assert model.routers[0].get_buffer("expert_V").tolist()[:9] == [1, 2, 0, 3, 1, 2, 0, 1, 1]


def test_noise_makes_the_copies_differ_by_a_share_of_the_matrixs_deviation() -> None:
    dense, model = tiny_model(10, switch_every=0, d_ff=256), tiny_model(10, d_ff=256)
    start_from(model, dense, noise=0.2, seed=3)
    w_in, copies = dense.state_dict()["blocks.1.ffn.w_in.weight"].T, model.state_dict()["blocks.1.ffn.experts.w_in_EDF"]
    noise = (copies - w_in) / w_in.std()
    assert noise.std().item() == pytest.approx(0.2, rel=0.02) and abs(noise.mean().item()) < 0.01
    assert abs(torch.corrcoef(noise.flatten(1)).triu(1)).max() < 0.1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"num_experts": 2}, r"model\.num_experts is 2 there and 4 here"),
        ({"top_k": 2}, "router=topk there and switch here"),
        ({"switch_every": 0, "d_ff": 48}, r"model\.d_ff is 48 there and 32 here"),
        ({"switch_every": 0, "num_layers": 1}, r"model\.num_layers is 1 there and 2 here"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_and_changes_nothing(source: dict[str, Any], reason: str) -> None:
    model = tiny_model(10)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        start_from(model, tiny_model(10, **source))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_run_that_starts_from_a_dense_one_starts_at_its_validation_loss(tmp_path: Path) -> None:
    config = short_run(tmp_path)
    dense = train(replace(config, name="dense", model=replace(config.model, switch_every=0)))
    dropless = replace(config.model, capacity_factor=None)
    train(replace(config, name="up", init_from="dense", model=dropless, router=SAME))
    losses = logged(tmp_path / "outputs" / "runs" / "up")["val/loss"]
    assert list(losses) == [0, 1, 2]
    assert losses[0] == pytest.approx(dense["best_val_loss"], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0], abs=1e-5)


def test_a_missing_dense_run_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_from=nowhere"):
        train(replace(short_run(tmp_path), init_from="nowhere"))
    assert not (tmp_path / "outputs").exists()


@pytest.fixture
def source(tmp_path: Path) -> Config:
    """That of a finished Switch run, whose text has the letters a to h, and the next one's on a text with others."""
    config = replace(short_run(tmp_path), name="source")
    train(config)
    other = tmp_path / "other.txt"
    other.write_text("dig a hole " * 400)
    return replace(config, init_from="source", data=replace(config.data, path=str(other)))


def test_parts_of_a_model_are_trained_on_another_text_and_go_on_with_the_same_bits(
    source: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Path(source.outputs) / "runs" / "source"
    before = read_model(trained)[0].state_dict()
    tuned, trainer = replace(source.model, dropout=0.1, expert_dropout=0.4), replace(source.trainer, max_steps=3)
    source = replace(source, model=tuned, trainer=trainer, balance=BalanceOptions(name="sign", rate=0.1))
    router = replace(source, name="router", train_only="router", logger=replace(source.logger, progress="lines"))
    train(router)
    plan = " ".join(capsys.readouterr().out.split())
    assert "source; of its 10 characters 4 are dropped, 3 are new" in plan
    assert "trained 128 parameters (train_only=router)" in plan
    keep = replace(source.data, unused_characters="keep")
    experts = replace(source, name="experts", train_only="experts", data=keep)
    train_steps(experts, 2)
    shutil.move(trained, trained.with_name("moved"))
    train(replace(experts, resume="experts"))
    train(replace(experts, name="whole", init_from=str(trained.with_name("moved"))))
    for config, characters, count in ((router, " adeghilo", 2), (experts, " .abcdefghilo", 4)):
        content = checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")
        assert content["switch_lm"]["vocabulary"] == characters
        assert sum(len(one["state"]) for one in content["optimizer_states"][0]["optimizers"]) == count
        after = {name.removeprefix("model."): weight for name, weight in content["state_dict"].items()}
        changed = {name for name in after if name in before and name.startswith("blocks")
                   and not torch.equal(after[name], before[name])}  # fmt: skip
        assert {name.split(".")[3] for name in changed} == {config.train_only} and len(changed) == count
        assert after["blocks.0.ffn.router.bias_E"].any() == (config is router)
    assert text_of(read_model(folder_of(experts))[1], None)[0].text(11) == "dig a hole "  # as evaluate reads it
    whole = checkpoint.read(folder_of(replace(experts, name="whole")) / "checkpoints" / "last.ckpt")
    assert same(content["state_dict"], whole["state_dict"]) and same(
        content["optimizer_states"], whole["optimizer_states"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_only": "router", "init_from": None, "model": {"switch_every": 0}},
            "a dense model has no such weights",
        ),
        ({"train_only": "router", "init_from": None, "router": {"name": "hash"}}, "router=hash has no such weights"),
        ({"model": {"switch_every": 0}}, r"the Switch layers are blocks \[0, 1\] there and none here"),
        (
            {"model": {"upcycle_noise": 0.1}},
            "none of its layers becomes a layer of experts: leave out model.upcycle_noise",
        ),
        ({"init_from": None, "model": {"upcycle_noise": 0.1}}, "name the run with init_from=RUN"),
        (
            {"init_from": None, "data": {"unused_characters": "keep"}},
            "keep needs init_from: the characters kept are those of that run",
        ),
        ({"text": "\u03b1\u03b2" * 500}, "it knows none of the 2 characters of the text"),
    ],
)
def test_what_cannot_start_from_a_run_or_train_a_part_of_it_is_refused(
    source: Config, changes: dict[str, Any], message: str
) -> None:
    if text := changes.pop("text", ""):
        Path(str(source.data.path)).write_text(text, encoding="utf-8")
    plain = asdict(replace(source, name="new"))
    for key, value in changes.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        train(resolved(plain))
    assert not (Path(source.outputs) / "runs" / "new").exists()
