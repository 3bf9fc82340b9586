"""The dashboard as `make tensorboard` serves it: the real server is asked for what its pages draw."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from switch_lm import hparams
from switch_lm.architecture import ModelConfig
from switch_lm.settings import Config, DataConfig, LoggerConfig, TrainerConfig
from switch_lm.train import train

MAKEFILE = Path(__file__).parent.parent / "Makefile"
STARTS_WITHIN_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over one short run, with the options that `make tensorboard` gives."""
    place = tmp_path_factory.mktemp("dashboard")
    (place / "text.txt").write_text("to be, or not to be. " * 100)
    train(
        Config(
            model=ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=16, context_length=8, num_experts=3),
            data=DataConfig(path=str(place / "text.txt"), batch_size=4),
            trainer=TrainerConfig(max_steps=6, val_every=3, compile="false"),
            logger=LoggerConfig(log_every=1, sample_length=10, progress="none"),
            name="run",
            outputs=str(place / "outputs"),
        )
    )
    recipe = re.search(r"tensorboard\.main --logdir outputs (.*) \$\(ARGS\)", MAKEFILE.read_text())
    assert recipe is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(place / "outputs"), *recipe[1].split()]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}/data"
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not _answers(url):
            assert time.monotonic() < deadline, "the dashboard did not show the run in time"
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its data server too
        process.wait()


def get(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)


def _answers(url: str) -> bool:
    try:
        return "hp/val_loss" in get(f"{url}/plugin/scalars/tags").get("runs/run", {})
    except OSError:
        return False


def test_one_chart_a_layer_and_quantity_draws_every_expert_at_every_step(server: str) -> None:
    layout = get(f"{server}/plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    assert len(charts) == 2 * 3  # layers x (selected, kept, mean probability)
    for chart in charts:
        (regex,) = chart["multiline"]["tag"]
        drawn = get(f"{server}/plugin/custom_scalars/scalars", run="runs/run", tag=regex)["tag_to_events"]
        assert sorted(tag[-9:] for tag in drawn) == ["expert_00", "expert_01", "expert_02"]
        assert all([step for _, step, _ in points] == [1, 2, 3, 4, 5, 6] for points in drawn.values())


def test_texts_and_one_row_of_hyperparameters_are_there(server: str) -> None:
    assert set(get(f"{server}/plugin/text/tags")["runs/run"]) == {
        f"{name}/text_summary" for name in ("computation", "configuration", "sample")
    }
    points = get(f"{server}/plugin/scalars/scalars", run="runs/run", tag="hp/val_loss")
    assert points[-1][1] == 6


def test_dense_and_dropless_runs_have_a_place_of_their_own_among_the_hyperparameters() -> None:
    factors = [
        hparams.row(Config(model=ModelConfig(**changes)))["model.capacity_factor"]
        for changes in ({"capacity_factor": 2}, {"capacity_factor": None}, {"switch_every": 0})
    ]
    assert factors == ["2.0", "dropless", "dense"]
    result = {"val_loss": 1.5, "best_val_loss": 1.4, "dropped": None, "tokens_per_second": 9.0}
    assert hparams.metrics(result).keys() == hparams.NO_METRICS.keys()
    assert hparams.metrics(result)["hp/dropped"] == 0.0  # without it the page leaves a dense run out
