"""The public names of the package: how they are imported, and what a user can rely on."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, MakeRun, tiny_model

import switch_lm
from switch_lm import Routing, SwitchFeedForward, SwitchLM, expert_capacity, load, load_balancing_loss
from switch_lm.generation.sampling import generate
from switch_lm.model.config import ModelConfig
from switch_lm.routers.options import ExpertChoiceOptions, RouterOptions, SwitchOptions, TopKOptions
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.text.vocabulary import Vocabulary

NAMES = {
    "Board", "Expected", "Promise", "Router", "Routing", "Run", "SwitchFeedForward", "SwitchLM", "expert_capacity",
    "fit", "load", "load_balancing_loss",
}  # fmt: skip
ROOT = Path(switch_lm.__file__).parents[1]


def test_the_public_names_are_listed_and_no_others() -> None:
    assert set(switch_lm.__all__) == NAMES
    assert set(dir(switch_lm)) >= NAMES | {"__version__"}
    for name in NAMES:
        assert getattr(switch_lm, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'switch_lm' has no attribute 'SwitchLn'"):
        _ = switch_lm.SwitchLn
    with pytest.raises(ImportError, match="SwitchLn"):
        from switch_lm import SwitchLn  # noqa: F401


USE = """
import sys, switch_lm
dir(switch_lm)
print('torch' in sys.modules)
run = switch_lm.load('tiny')
model, vocabulary = run
print(model is run.model, vocabulary is run.vocabulary, run.config['data']['batch_size'])
print(repr(run.generate('To', length=5)), len(run.routing('To be')), sorted(run.history()))
print(*(len(plot().axes) for plot in (run.plot_losses, run.plot_loads)))
print(*(name in sys.modules for name in ('torch', 'hydra', 'lightning')))
"""


def test_the_package_loads_torch_at_the_first_use_of_a_name_and_never_hydra_or_lightning(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """All that a loaded run can do is done, in a process of its own."""
    folder, loads = make_run("tiny"), {f"moe/layer_0{layer}/load/expert_0{e}": 16 for layer in (0, 1) for e in range(4)}
    rows: list[dict[str, Any]] = [
        {"step": step, "time": 0.5, "train/loss": 2.0, "val/loss": None} | loads for step in (5, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [sys.executable, "-c", USE]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    text, tags = (
        generate(load(folder).model, Vocabulary.of(TEXT), "To", length=5),
        sorted(rows[0].keys() - {"step", "time"}),
    )
    assert done.stdout.splitlines() == [
        "False",
        "True True 4",
        f"{'To' + ''.join(text)!r} {5 * 2} {tags}",
        "1 2",
        "True False False",
    ], done.stderr


def test_history_has_the_steps_and_values_of_each_tag_and_loads_are_shown_over_their_mean(make_run: MakeRun) -> None:
    folder = make_run("tiny")
    rows: list[dict[str, Any]] = [
        {"step": 5, "time": 0.5, "val/loss": 2.5},
        {"step": 9, "time": 1.0, "val/loss": None, "a": 3},
    ]
    loads = {f"moe/layer_01/load/expert_0{e}": 8 * (e == 1) for e in range(4)}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row | loads)}\n" for row in rows))
    run = load("tiny")
    history = run.history()
    assert history["val/loss"].step.tolist() == [5, 9] and history["a"].step.tolist() == [9]
    assert history["val/loss"].value[0] == 2.5 and math.isnan(history["val/loss"].value[1])
    (image,) = run.plot_loads().axes[0].images
    assert np.asarray(image.get_array()).tolist() == [[0.0, 0.0], [4.0, 4.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("router", [SwitchOptions(), TopKOptions(top_k=2), ExpertChoiceOptions()], ids=lambda x: x.name)
@pytest.mark.parametrize("capacity_factor", [None, 0.5])
def test_routing_has_a_row_for_each_character_and_layer(
    make_run: MakeRun, router: RouterOptions, capacity_factor: float | None
) -> None:
    """Against the routings of a pass over the same windows, assignment by assignment."""
    make_run("tiny", model=tiny_model(router=router))
    run, text = load("tiny"), TEXT[:50]  # three windows of 16, a batch, and one of 2
    table = run.routing(text, capacity_factor=capacity_factor)
    assert table["place"].tolist() == [n for n in range(50) for _ in "01"]
    assert table["layer"].tolist() == [0, 1] * 50
    assert "".join(table["character"][::2].tolist()) == text
    windows = [run.vocabulary.encode(text[:48]).view(3, 16), run.vocabulary.encode(text[48:])[None]]
    start = 0
    for ids_BS in windows:
        with torch.no_grad():
            routings = run.model(ids_BS, capacity_factor=capacity_factor).routings
        for place, layer in itertools.product(range(ids_BS.numel()), (0, 1)):
            row, routing = table[2 * (start + place) + layer], routings[layer]
            of_token = [n for n, t in enumerate(routing.token_N.tolist()) if t == place]
            if routing.used_N is not None:
                of_token = [n for n in of_token if routing.used_N[n]]
            probs = routing.probs_TE[place].tolist()
            if of_token:
                best = max(of_token, key=lambda n: routing.gate_N[n])
                expert = int(routing.expert_N[best])
                assert (row["expert"], row["kept"]) == (expert, bool(routing.kept_N[best]))
                assert row["gate"] == pytest.approx(float(routing.gate_N[best]))
                assert row["runner_up"] == max({*range(4)} - {expert}, key=lambda e: probs[e])
            else:
                assert (row["expert"], row["gate"], row["kept"]) == (-1, 0.0, False)
        start += ids_BS.numel()
    assert table["kept"].all() == (capacity_factor is None or router.name == "expert_choice")


def test_four_sizes_make_a_layer_of_the_paper() -> None:
    """One expert per token, gates of raw probability, 1% jitter, dropless in evaluation."""
    torch.manual_seed(0)
    layer = SwitchFeedForward(d_model=8, d_ff=12, num_experts=4, capacity_factor=0.5)
    assert (layer.router.options, layer.router.options.jitter) == (SwitchOptions(), 0.01)
    assert (layer.router.name, layer.shared, layer.router.bias_E) == ("switch", None, None)
    assert {name: tuple(weight.shape) for name, weight in layer.named_parameters()} == {
        "router.w_DE": (8, 4), "experts.w_in_EDF": (4, 8, 12), "experts.w_out_EFD": (4, 12, 8),
    }  # fmt: skip
    x_BSD = torch.randn(3, 8, 8)
    y_BSD, routing = layer.eval()(x_BSD)
    x_TD = x_BSD.flatten(0, 1)
    gate_T, expert_T = (x_TD @ torch.as_tensor(layer.router.w_DE)).softmax(dim=1).max(dim=1)
    each_TD = [
        gate * ((x_D @ layer.experts.w_in_EDF[e]).relu() @ layer.experts.w_out_EFD[e])
        for x_D, gate, e in zip(x_TD, gate_T, expert_T, strict=True)
    ]
    torch.testing.assert_close(y_BSD.flatten(0, 1), torch.stack(each_TD))
    assert routing.capacity is None
    assert layer.train()(x_BSD)[1].capacity == expert_capacity(24, 4, 0.5) == 3


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_routing_has_its_public_fields_in_their_shapes(top_k: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(num_layers=1, d_model=8, num_heads=2, d_ff=12, num_experts=4)
    model = SwitchLM(config, 11, router=TopKOptions(top_k=top_k))
    (routing,) = model(torch.arange(10).view(2, 5)).routings
    assert isinstance(routing, Routing)
    names = ("load_E", "probs_TE", "expert_TK", "kept_TK", "gate_TK")
    choices = (10, top_k)
    assert [tuple(getattr(routing, name).shape) for name in names] == [(4,), (10, 4), choices, choices, choices]
    f_E, p_E = routing.load_E / (10 * top_k), routing.probs_TE.mean(dim=0)
    torch.testing.assert_close(load_balancing_loss(routing), 4 * (f_E * p_E).sum())


def test_load_leaves_random_numbers_as_they_are(make_run: MakeRun) -> None:
    make_run("tiny")
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    load("tiny")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(np.random.get_state())) == before[1:]


def test_load_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path)
