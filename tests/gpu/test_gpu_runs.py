"""Runs on a GPU: they continue bit by bit, move to another device, end where a number is bad, and never wait."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import same
from conftest import MakeRun, folder_of, tiny_model
from gpu_device import DEVICE, FLOAT32, IS_GPU, NAME, far
from small_models import noisy
from some_steps import around_each_micro_batch, nothing, train_steps

from switch_lm import check, evaluate, generate
from switch_lm.config.schema import Config
from switch_lm.model import devices
from switch_lm.optim.options import AdamWOptions, MuonOptions, OptimOptions
from switch_lm.routers.options import BalanceOptions, RouterOptions, SwitchOptions, TopKOptions
from switch_lm.storage import checkpoint
from switch_lm.storage.run_folder import TrainingError
from switch_lm.training.module import SwitchModule
from switch_lm.training.start import train

pytestmark = pytest.mark.gpu
WARM_UP, STEPS = 6, 20


@pytest.fixture
def run(config: Config) -> Config:
    """Twelve steps on the device, in float32 without noise; a validation and a checkpoint after six of them."""
    config.trainer = replace(config.trainer, device=NAME, precision="fp32", val_every=6, checkpoint_every=6)
    config.logger = replace(config.logger, log_every=5, sample_length=0)
    config.router.jitter, config.model.dropout = 0.0, 0.0
    return config


def with_graph(config: Config, recorded: bool) -> Config:
    """Whether steps are recorded once and replayed."""
    config.trainer.cuda_graph = recorded
    return config


def last(config: Config) -> dict[str, Any]:
    return checkpoint.read(folder_of(config) / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("precision", "optim", "factor", "graph"),
    [
        ("fp32", MuonOptions(), 1.0, True),
        ("bf16", AdamWOptions(), 1.0, False),
        ("bf16", MuonOptions(averages=[0.9]), None, True),
    ],
)
def test_a_run_that_was_stopped_ends_at_the_same_bits(
    run: Config, precision: str, optim: OptimOptions, factor: float | None, graph: bool
) -> None:
    run = replace(noisy(with_graph(run, graph)), optim=optim)
    run.trainer.precision, run.trainer.accumulate, run.model.capacity_factor = precision, 2, factor
    whole = replace(run, name="whole")
    want = train(whole)
    train_steps(run, 6)
    assert last(run)["global_step"] == 6
    got = train(replace(run, resume="auto"))
    assert [got[key] for key in ("steps", "val_loss", "dropped")] == [
        want[key] for key in ("steps", "val_loss", "dropped")
    ]
    assert (want["dropped"] > 0.0) == (factor is not None)
    for key in ("state_dict", "optimizer_states", "averages"):
        assert same(last(run).get(key), last(whole).get(key)), key


@pytest.mark.parametrize("noise", [False, True])
def test_recorded_steps_give_the_weights_of_launched_ones(
    run: Config, noise: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = noisy(run) if noise else run
    launched = replace(run, name="launched", trainer=replace(run.trainer))
    train(with_graph(launched, False))
    train(run)
    assert "launched alone" not in capsys.readouterr().err  # they were recorded
    ours, theirs = last(run)["state_dict"], last(launched)["state_dict"]
    assert {name: far(ours[name], theirs[name]) for name in ours if not far(ours[name], theirs[name]) < FLOAT32} == {}


@pytest.mark.parametrize(("first", "second"), [(NAME, "cpu"), ("cpu", NAME)])
def test_a_run_moves_to_another_device_and_says_so_in_one_line(
    run: Config, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.trainer.device = first
    want = train(replace(run, name="whole"))
    train_steps(run, 6)
    capsys.readouterr()
    moved = replace(run, trainer=replace(run.trainer, device=second), resume="auto")
    assert train(moved)["val_loss"] == pytest.approx(want["val_loss"], rel=1e-3)  # after six steps of small differences
    lines = [line for line in capsys.readouterr().err.splitlines() if "trainer.device" in line]
    assert len(lines) == (first != second)
    assert all(re.search(rf"trainer\.device was {first} \(.+\), now {second} \(", line) for line in lines)


def test_the_certificate_of_a_trained_run_fails_nowhere(run: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run.trainer.precision = "auto"
    train(run)
    assert check.main(["--run", str(folder_of(run)), "--device", NAME]) == 0
    assert "FAIL" not in capsys.readouterr().out
    verdicts = [one["verdict"] for one in json.loads((folder_of(run) / "check.json").read_text())["findings"]]
    assert len(verdicts) == 22 and set(verdicts) <= {"PASS", "LEAKS"}


@pytest.mark.parametrize("options", [SwitchOptions(), TopKOptions()], ids=lambda options: options.name)
def test_a_model_writes_and_scores_what_it_does_on_a_cpu(
    options: RouterOptions, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny", model=tiny_model(router=options))
    texts, results = [], []
    for device in (NAME, "cpu"):
        where = ["--run", "tiny", "--device", device]
        for how in (["--temperature", "0"], ["--seed", "3"]):
            assert generate.main([*where, "--length", "60", "--prompt", "To be", *how]) == 0
            texts.append(capsys.readouterr().out)
        assert evaluate.main([*where, "--capacity-factor", "0.5", "none", "--json", "seen.json"]) == 0
        results += json.loads(Path("seen.json").read_text())["results"]
        capsys.readouterr()
    assert texts[:2] == texts[2:] and texts[0] != texts[1] and len(texts[0]) == 66
    for here, there in zip(results[:2], results[2:], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=FLOAT32)
        assert here["dropped_per_layer"] == there["dropped_per_layer"]


def test_a_nan_ends_a_run_at_the_next_logged_step_with_the_first_bad_step_and_nothing_bad_saved(
    run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[int]()

    def spoil(module: SwitchModule) -> None:
        begun.append(module.global_step + 1)
        if begun[-1] == 7:
            module.model.get_parameter("blocks.1.ffn.router.w_DE").data[3, 2] = math.nan

    around_each_micro_batch(monkeypatch, start=spoil, end=nothing)
    with pytest.raises(TrainingError, match=r"\bat step 7\b"):
        train(run)
    assert begun[-1] == (10 if IS_GPU else 7)  # a CPU looks at every step
    assert sorted(path.name for path in (folder_of(run) / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert last(run)["global_step"] == 6
    assert all(torch.isfinite(weight).all() for weight in last(run)["state_dict"].values())


KINDS: dict[str, tuple[RouterOptions, BalanceOptions, dict[str, Any]]] = {
    "capacity": (SwitchOptions(), BalanceOptions(), {}),
    "two choices": (TopKOptions(), BalanceOptions(), {}),
    "dense": (SwitchOptions(), BalanceOptions(), {"switch_every": 0}),
    "sign": (SwitchOptions(), BalanceOptions("sign"), {}),
    "dropless": (SwitchOptions(), BalanceOptions(), {"capacity_factor": None}),
}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("optim", [MuonOptions(averages=[0.9]), AdamWOptions()], ids=lambda optim: optim.name)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_never_wait_for_the_device(run: Config, kind: str, optim: OptimOptions, graph: bool) -> None:
    if kind == "dropless" and IS_GPU and not devices.multiplies_groups(DEVICE, torch.bfloat16):
        pytest.skip("this GPU or torch multiplies no groups in one kernel: dropless layers read their loads")
    router, balance, changes = KINDS[kind]
    run = replace(with_graph(run, graph), router=router, balance=balance, optim=optim)
    run.model = replace(run.model, dropout=0.1, **changes)
    run.trainer = replace(run.trainer, precision="bf16", max_steps=99, val_every=99, checkpoint_every=99)
    run.logger.log_every = 99

    def watch(module: SwitchModule) -> None:
        if IS_GPU and module.global_step in (WARM_UP, WARM_UP + STEPS):
            torch.cuda.set_sync_debug_mode("error" if module.global_step == WARM_UP else "default")

    try:
        train_steps(run, WARM_UP + STEPS, start=watch, end=watch)
    finally:
        if IS_GPU:
            torch.cuda.set_sync_debug_mode("default")
    if not IS_GPU:
        pytest.skip("only a GPU shows whether a step waits for it")
