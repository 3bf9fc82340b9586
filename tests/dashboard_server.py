"""A real TensorBoard over one short run, for the tests of the dashboard: `server` is the fixture."""

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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from switch_lm.certificate.finding import Finding, Verdict
from switch_lm.certificate.show import certificate_markdown, write_text
from switch_lm.config.schema import Config, DataConfig, HealthConfig, LoggerConfig, TrainerConfig
from switch_lm.model.config import ModelConfig
from switch_lm.training.boards.tensorboard import open_writer
from switch_lm.training.start import train

STARTS_WITHIN_S = 60
RUN, DENSE = "runs/switch", "runs/dense"
LAYERS, EXPERTS = 4, 8  # of the default model
FINDINGS = [
    Finding("future_1, own | row", Verdict.PASS, "at most 1e-07 < 1e-5", "no token sees its future"),
    Finding("drops", Verdict.LEAKS, "12 *of* 96", "what is dropped depends on <other> rows"),
]


@dataclass(frozen=True)
class Server:
    """The address of a running server."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        """The answer of its API, as data."""
        return json.loads(self.read(path, urllib.parse.urlencode(query)))

    def read(self, path: str, query: str) -> bytes:
        """The same as bytes."""
        with urllib.request.urlopen(f"{self.url}/data/{path}?{query}", timeout=10) as answer:
            return bytes(answer.read())

    def is_ready(self) -> bool:
        """Whether it has read all runs to their ends."""
        try:
            last = self.get("plugin/histograms/histograms", run=RUN, tag=f"routing/margin/layer_{LAYERS - 1:02d}")[-1]
            losses = self.get("plugin/scalars/tags").get(DENSE, {})
            texts = self.get("plugin/text/tags").get(RUN, ())
        except OSError:
            return False
        return last[1] == 6 and "val/window_loss" in losses and any("certificate" in tag for tag in texts)


def train_briefly(place: Path) -> Path:
    """A Switch run with its certificate and a dense one, of six steps each; their outputs folder."""
    text = place / "text.txt"
    text.write_text("to be, or not to be:\n3 of 12. " * 60)
    config = Config(
        model=ModelConfig(d_model=16, num_heads=2, d_ff=16, context_length=8, num_layers=LAYERS, num_experts=EXPERTS),
        data=DataConfig(path=str(text), dir=str(text.parent), batch_size=4),
        trainer=TrainerConfig(max_steps=6, val_every=3, compile="false"),
        logger=LoggerConfig(log_every=1, sample_length=10, progress="none"),
        health=HealthConfig(every=2),
        name="switch",
        outputs=str(place / "outputs"),
    )
    train(config)
    config.model.switch_every, config.name = 0, "dense"
    train(config)
    outputs = place / "outputs"
    write_text(outputs / RUN, "summary/certificate", certificate_markdown(FINDINGS), 6, open_writer=open_writer)
    return outputs


@contextmanager
def serving(outputs: Path) -> Iterator[Server]:
    """What `make tensorboard` runs; port 6006 is taken, and nothing can be written in TensorBoard's folder."""
    place, log = outputs.parent, outputs.parent / "log"
    (place / ".tensorboard-info").touch()
    with ExitStack() as taken, log.open("w") as file:
        other_port = r"\d+"
        with suppress(OSError):  # another test's process has it, and may leave it at any time
            taken.enter_context(socket.create_server(("127.0.0.1", 6006)))
            other_port = r"(?!6006)\d+"
        command = [sys.executable, "-m", "switch_lm.dashboard", "--outputs", str(outputs)]
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"TMPDIR": str(place)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # if the tests run in the background
        )  # fmt: skip
        deadline, running = time.monotonic() + STARTS_WITHIN_S, None
        try:
            while running is None or not running.is_ready():
                text = log.read_text()  # one line
                address = re.fullmatch(rf"TensorBoard: (http://127.0.0.1:{other_port})/ \(Ctrl-C ends it\)\n", text)
                running = Server(address[1]) if address else None
                assert time.monotonic() < deadline, f"the dashboard did not show the runs in time: {text}"
                time.sleep(0.5)
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(STARTS_WITHIN_S) == 130
        assert not list(place.glob("switch_lm_dashboard_*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the module's tests."""
    with serving(train_briefly(tmp_path_factory.mktemp("dashboard"))) as running:
        yield running
