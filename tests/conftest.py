"""A tiny model, the folder of a finished run of it, and a small run to train."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from switch_lm.config.schema import Config, DataConfig, LoggerConfig, TrainerConfig
from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM
from switch_lm.optim.options import MuonOptions
from switch_lm.routers.options import BalanceOptions, RouterOptions
from switch_lm.storage import checkpoint, metrics
from switch_lm.text.vocabulary import Vocabulary

pytest_plugins = ["fault_rows", "gpu_device", "kept_board"]
TEXT = "To be, or not to be: that is the question.\n" * 20
BATCH_SIZE = 4
MakeRun = Callable[..., Path]
# On tensors this small a second thread is only waited for; and tests run side by side, with processes of their own.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def tiny_model(
    vocab_size: int = len(Vocabulary.of(TEXT)),
    *,
    router: RouterOptions | None = None,
    balance: BalanceOptions | None = None,
    **changes: Any,
) -> SwitchLM:
    """Two Switch layers of four experts and 16 positions, always with the same weights, spread enough to differ.

    `changes` are keys of a model or of a router, which is `topk` where they need it, and `switch` otherwise.
    """
    from small_models import OF_ROUTER, router_options

    chosen = {key: changes.pop(key) for key in list(changes) if key in OF_ROUTER}
    router = router_options(**chosen) if router is None else router
    sizes: dict[str, Any] = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "context_length": 16}
    model = ModelConfig(**sizes | {"num_experts": 4, "init_scale": 2.0} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SwitchLM(model, vocab_size, router=router, balance=balance).eval()


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's maps of its routing are one pixel, and what it writes to be compared is short: half of a run's time.

    Tests of the one or the other have a fixture of this name that leaves them as they are.
    """
    monkeypatch.setattr("switch_lm.pages.pictures.as_image", lambda _: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr("switch_lm.training.baselines.LENGTH_OF_TEXT", 20)


@pytest.fixture
def config(tmp_path: Path, quick_end: None) -> Config:
    """A run of twelve steps that takes a second."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 23) + " ." * (i % 5 == 0) for i in range(4000)))
    return Config(
        model=ModelConfig(
            num_layers=2, d_model=32, num_heads=2, d_ff=48, context_length=16, num_experts=4, dropout=0.1
        ),
        data=DataConfig(path=str(text), dir=str(tmp_path / "data"), batch_size=8),
        optim=MuonOptions(warmup_steps=3),
        trainer=TrainerConfig(max_steps=12, val_every=5, checkpoint_every=4, compile="false"),
        logger=LoggerConfig(boards={"kept": {}}, log_every=2, sample_prompt="a", sample_length=20, progress="none"),
        alpha=0.01,
        name="run",
        outputs=str(tmp_path / "outputs"),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: the last file of one worker must not leave the other idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in slow)


def folder_of(config: Config) -> Path:
    """Where the run of `config` lies."""
    return Path(config.outputs) / "runs" / str(config.name)


def logged(run: Path) -> dict[str, dict[int, float]]:
    """Everything in the run's metrics.jsonl, by tag and then by step. No tag has two values of a step."""
    by_tag: dict[str, dict[int, float]] = {}
    for row in metrics.read(run):
        for tag in row.keys() - {"step", "time"}:
            assert row["step"] not in by_tag.setdefault(tag, {}), f"{tag} twice at step {row['step']}"
            by_tag[tag] |= metrics.series([row], tag)
    return by_tag


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Writes outputs/runs/NAME, or outputs/sweeps/NAME where the name has a slash, in an empty working directory.

    `saved_at`: when its checkpoint was written, in seconds; None: it has none yet.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWITCH_LM_DATA", raising=False)

    def make(
        name: str = "tiny",
        *,
        model: SwitchLM | None = None,
        text: str = TEXT,
        precision: str = "fp32",
        saved_at: float | None = 1e9,
    ) -> Path:
        folder = Path("outputs", "sweeps" if "/" in name else "runs", name)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("name: a run\n")
        if saved_at is not None:
            Path("text.txt").write_text(text, encoding="utf-8")
            content = checkpoint_of(model or tiny_model(len(Vocabulary.of(text))), text, precision)
            checkpoint.write(content, folder / "checkpoints" / "best.ckpt")
            os.utime(folder / "checkpoints" / "best.ckpt", (saved_at, saved_at))
        return folder

    return make


def checkpoint_of(model: SwitchLM, text: str, precision: str) -> dict[str, Any]:
    """What training writes of a model, as far as readers of a run look at it."""
    header = checkpoint.Header(
        model=asdict(model.config),
        router=asdict(model.router_options),
        balance=asdict(model.balance),
        vocabulary=Vocabulary.of(text).characters,
        corpus_sha256=hashlib.sha256(text.encode()).hexdigest(),
        precision=precision,
        config={
            "data": {"path": "text.txt", "dir": "data", "batch_size": BATCH_SIZE},
            "model": asdict(model.config),
            "router": asdict(model.router_options),
            "balance": asdict(model.balance),
            "alpha": 0.01,
        },
    )
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": weights, "switch_lm": header.as_plain()}
