"""Pictures of the routing: they show what happened, continue after a restart, and do not change training."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import TEXT, folder_of, logged, tiny_model
from kept_board import kept
from small_models import NOISE, noisy
from torch import Tensor
from worked import route

from switch_lm.config.schema import Config
from switch_lm.model.transformer import SwitchLM
from switch_lm.pages.characters import visible
from switch_lm.pages.expert_maps import atlas, order
from switch_lm.routers.base import Router
from switch_lm.routers.routing import Routing
from switch_lm.storage import checkpoint
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.training.callbacks.routing_pictures import (
    ATLAS_TAG,
    DROPPED_TAG,
    LOAD_TAG,
    MARGIN_TAG,
    LoadHistory,
    RoutingPictures,
    dropless,
    margins,
    shares_by_character,
)
from switch_lm.training.start import train

VOCABULARY = Vocabulary.of(TEXT)
TAGS = [tag.format(layer) for tag in (LOAD_TAG, DROPPED_TAG, ATLAS_TAG) for layer in (0, 1)]
MARGIN_TAGS = [MARGIN_TAG.format(layer) for layer in (0, 1)]


@pytest.fixture
def quick_end() -> None:
    """Nothing is left out."""


def pictures(run: Path) -> dict[str, dict[int, bytes]]:
    """By tag and step."""
    shown = {tag: by_step for tag, by_step in kept(run).items() if tag.startswith("routing/")}
    return {tag: by_step for tag, by_step in shown.items() if tag not in MARGIN_TAGS}


def history(**changes: Any) -> LoadHistory:
    sizes: dict[str, Any] = {"blocks": range(2), "num_experts": 2, "max_steps": 30, "log_every": 10}
    return LoadHistory(**sizes | changes)


def shares(model: SwitchLM, ids_BS: Tensor) -> Tensor:
    return shares_by_character(dropless(model, ids_BS), ids_BS, vocab_size=len(VOCABULARY))


# --- Load and drops over time


def test_a_layers_maps_have_a_column_per_logged_step_a_row_per_expert_and_future_steps_are_blank() -> None:
    loads = history()
    loads.add(torch.tensor([[6, 2], [0, 8]]), torch.tensor([[3, 0], [0, 2]]), step=10)
    loads.add(torch.tensor([[4, 4], [8, 0]]), step=20)
    for layer, (load, dropped) in enumerate(
        (([(1.5, 1.0), (0.5, 1.0)], [(0.5, 0.0), (0.0, 0.0)]), ([(0.0, 2.0), (2.0, 0.0)], [(0.0, 0.0), (0.25, 0.0)]))
    ):
        for picture, rows in ((loads.load(layer), load), (loads.dropped(layer), dropped)):
            assert picture.title.startswith(f"Layer {layer:02d}: ")
            assert (picture.x_names, picture.y_names) == (("0", "10", "20"), ("00", "01"))
            assert [row[:2] for row in picture.values] == rows
            assert all(math.isnan(row[2]) for row in picture.values)
    picture = loads.load(0)
    assert (picture.low, picture.centre, picture.high) == (0.0, 1.0, 2.0)
    loads.load_CLE[0, 0] = 0  # a step in which that layer's experts took nobody: idle, not still to come
    assert [row[0] for row in loads.load(0).values] == [0.0, 0.0]


def test_of_more_than_64_experts_64_are_shown_and_the_map_says_which() -> None:
    loads = history(num_experts=127)
    loads.add(torch.arange(127).expand(2, -1), step=10)
    picture = loads.load(0)
    assert (*picture.y_names[:2], picture.y_names[63]) == ("126", "124", "00")
    assert len(picture.values) == 64
    assert picture.y_label == "expert (64 of 127, from the busiest to the idlest)"
    share_EV = torch.eye(127)[:, :2]
    maps = atlas(share_EV, "ab", [0, 1], load_E=share_EV[:, 1].tolist())
    assert maps.y_names[0] == "01" and len(maps.values) == 64 and "64 busiest of 127" in maps.y_label


@pytest.mark.parametrize("log_every", [1, 7])
def test_a_run_resumed_with_another_log_every_keeps_the_columns_that_it_began_with(
    log_every: int, config: Config
) -> None:
    longer = replace(config, trainer=replace(config.trainer, max_steps=1800))
    ids = VOCABULARY.encode(TEXT)
    before = RoutingPictures(ids, replace(longer, logger=replace(config.logger, log_every=10)))
    before.history.add(torch.ones(2, before.history.load_CLE.shape[2], dtype=torch.long), step=10)
    after = RoutingPictures(ids, replace(longer, logger=replace(config.logger, log_every=log_every)))
    after.load_state_dict(before.state_dict())
    after.history.add(torch.ones(2, before.history.load_CLE.shape[2], dtype=torch.long), step=1800)
    assert after.history.load_CLE.sum(dim=(1, 2)).nonzero().flatten().tolist() == [0, 179]


@pytest.mark.parametrize(
    ("max_steps", "log_every", "columns", "steps"),
    [(6, 1, 6, 1), (300, 10, 30, 10), (2000, 10, 200, 10), (2010, 10, 101, 20), (15600, 10, 195, 80), (5, 10, 1, 10)],
)
def test_a_long_training_has_at_most_200_columns_which_reach_its_last_step(
    max_steps: int, log_every: int, columns: int, steps: int
) -> None:
    loads = history(max_steps=max_steps, log_every=log_every)
    assert (len(loads.load_CLE), loads.steps) == (columns, steps)
    for step in range(log_every, max_steps + 1, log_every):
        loads.add(torch.ones(2, 2, dtype=torch.long), step=step)
    if max_steps >= log_every:
        assert loads.load(0).values[0] == (1.0,) * columns


def test_several_logged_steps_of_a_column_are_averaged() -> None:
    loads = history(max_steps=4000)
    loads.add(torch.tensor([[8, 0], [4, 4]]), step=10)
    loads.add(torch.tensor([[4, 4], [2, 6]]), step=20)
    loads.add(torch.tensor([[0, 8], [8, 0]]), step=30)
    assert [row[:2] for row in loads.load(0).values] == [(1.5, 0.0), (0.5, 2.0)]


# --- Atlas


def test_characters_are_in_a_readers_order_and_each_is_visible() -> None:
    characters = "".join(sorted("\n\t !z3aZéA.\x07"))
    assert "".join(characters[i] for i in order(characters)) == "\n\t \x07!.3AZazé"
    assert [visible(c) for c in "\n\t \x07a\\"] == ["\\n", "\\t", "␣", "\\x07", "a", "\\"]


@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"eval_capacity_factor": 0.5}], ids=str)
def test_shares_are_those_of_a_slow_count(changes: dict[str, Any]) -> None:
    model, ids = tiny_model(**changes), VOCABULARY.encode(TEXT[:48]).view(3, 16)
    share_LEV = shares(model, ids)
    with torch.no_grad():
        routings = model(ids, capacity_factor=None).routings
    seen, got = Counter(ids.flatten().tolist()), Counter[tuple[int, int, int]]()
    for layer, routing in enumerate(routings):
        for character, experts in zip(ids.flatten().tolist(), routing.expert_TK.tolist(), strict=True):
            got.update((layer, expert, character) for expert in experts)
    assert share_LEV.shape == (2, 4, len(VOCABULARY))
    for layer, share_EV in enumerate(share_LEV.tolist()):
        for expert, share_V in enumerate(share_EV):
            expected = [got[layer, expert, c] / seen[c] if seen[c] else math.nan for c in range(len(VOCABULARY))]
            assert share_V == pytest.approx(expected, nan_ok=True)


class AboveCutOff(Router):
    """A token goes to every expert whose sigmoid exceeds 0.5: from none to all."""

    def assign(self, x_TD: Tensor, logits_TE: Tensor, **_: Any) -> Routing:
        scores_TE, (T, E) = logits_TE.sigmoid(), logits_TE.shape
        token_N, expert_N = torch.arange(T).repeat_interleave(E), torch.arange(E).repeat(T)
        used_N = (scores_TE > 0.5).flatten()
        return Routing.listed(
            token_N=token_N, expert_N=expert_N, gate_N=scores_TE.flatten(), scores_TE=scores_TE, used_N=used_N
        )


def test_shares_of_a_router_with_any_number_of_experts_per_token_are_those_of_a_slow_count() -> None:
    model, ids = tiny_model(), VOCABULARY.encode(TEXT[:48]).view(3, 16)
    for layer in model.switch_layers:
        layer.router = AboveCutOff(d_model=model.config.d_model, num_experts=4)
        torch.nn.init.normal_(torch.as_tensor(layer.router.w_DE))
    with torch.no_grad():
        routings = model.eval()(ids, capacity_factor=None).routings
    assert {len(set(routing.used_N.view(-1, 4).sum(dim=1).tolist())) > 1 for routing in routings} == {True}
    share_LEV, ids_T = shares(model, ids), ids.flatten()
    for share_EV, routing in zip(share_LEV, routings, strict=True):
        takes_TE = routing.used_N.view(-1, 4)
        for c in set(ids_T.tolist()):
            takes = takes_TE[ids_T == c].float()
            assert share_EV[:4, c].tolist() == pytest.approx(takes.mean(dim=0).tolist())
            assert share_EV[4, c].item() == pytest.approx((takes.sum(dim=1) == 0).float().mean().item())


def test_an_atlas_has_a_row_per_expert_and_the_chosen_characters_in_order() -> None:
    share_EV = torch.tensor([[0.25, math.nan, 1.0], [0.75, math.nan, 0.0]])
    picture = atlas(share_EV, "\n.a", [2, 0], load_E=[1.0, 1.0])
    assert (picture.x_names, picture.y_names) == (("a", "\\n"), ("00", "01"))
    assert picture.values == ((1.0, 0.25), (0.0, 0.75))
    none = atlas(torch.cat([share_EV, share_EV[:1]]), "\n.a", [2, 0], load_E=[1.0, 1.0])
    assert none.y_names[2:] == ("", "none") and none.values[3] == (1.0, 0.25)
    assert (picture.low, picture.high, picture.centre) == (0.0, 1.0, None)


def test_measuring_restores_the_models_mode_and_draws_no_random_number() -> None:
    model = tiny_model(**NOISE).train()
    before, weights = torch.get_rng_state(), {name: w.clone() for name, w in model.state_dict().items()}
    first = shares(model, VOCABULARY.encode(TEXT[:48]).view(3, 16))
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), before)
    assert same(dict(model.state_dict()), weights)
    assert same(first, shares(model.eval(), VOCABULARY.encode(TEXT[:48]).view(3, 16)))


# --- Margins


def test_a_margin_is_the_gap_between_the_two_most_probable_experts() -> None:
    logits_TE = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.2, 0.4]]).log()
    assert margins(route(logits_TE, capacity=None)).tolist() == pytest.approx([0.2, 0.7, 0.0], abs=1e-6)


# --- In training


def test_the_load_over_time_equals_the_scalars_and_is_written_after_each_validation(config: Config) -> None:
    config.trainer.accumulate = 2
    train(config)
    drawn = pictures(folder_of(config))
    assert sorted(drawn) == TAGS  # TensorBoard's order
    assert all(list(shown) == [5, 10, 12] for shown in drawn.values())
    assert all(len(set(drawn[tag].values())) == 3 for tag in TAGS[:4])  # they grow
    for tag in MARGIN_TAGS:
        by_step = kept(folder_of(config))[tag]
        assert list(by_step) == [5, 10, 12] and {(low, high) for _, low, high in by_step.values()} == {(0.0, 1.0)}
        assert {sum(counts) for counts, _, _ in by_step.values()} == {544}  # all windows of 16
    state = checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")["callbacks"]["RoutingPictures"]
    points = logged(folder_of(config))
    for layer in range(2):
        for e in range(4):
            loads = points[f"moe/layer_{layer:02d}/load/expert_{e:02d}"]
            assert state["load_CLE"][:, layer, e].tolist() == list(loads.values())


def test_a_resumed_run_shows_the_pictures_of_one_that_was_never_stopped(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(config, name="whole"))
    start = RoutingPictures.on_train_batch_start

    def stop(self: RoutingPictures, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            raise KeyboardInterrupt
        start(self, trainer, pl_module, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(RoutingPictures, "on_train_batch_start", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(replace(config, name="halves"))
    train(replace(config, name="halves", resume="halves"))
    whole, halves = (pictures(folder_of(replace(config, name=name))) for name in ("whole", "halves"))
    assert whole == halves


def test_pictures_do_not_change_training(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = noisy(config)
    train(replace(config, name="drawn"))
    for hook in ("on_train_batch_end", "on_validation_end"):
        monkeypatch.setattr(RoutingPictures, hook, lambda *args, **kwargs: None)
    train(replace(config, name="undrawn"))
    runs = [folder_of(replace(config, name=name)) for name in ("drawn", "undrawn")]
    states = [checkpoint.read(run / "checkpoints" / "last.ckpt") for run in runs]
    for key in ("state_dict", "optimizer_states", "drops", "validation"):
        assert same(states[0][key], states[1][key]), key
    assert pictures(runs[0]) and not pictures(runs[1])


def test_a_dense_run_has_no_pictures(config: Config) -> None:
    config.model.switch_every = 0
    train(config)
    assert not [tag for tag in kept(folder_of(config)) if tag.startswith("routing/")]


def test_without_a_capacity_there_is_no_picture_of_drops(config: Config) -> None:
    config.model.capacity_factor, config.trainer.max_steps = None, 2
    train(config)
    assert sorted(pictures(folder_of(config))) == [*TAGS[:2], *TAGS[4:]]
