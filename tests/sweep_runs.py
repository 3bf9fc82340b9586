"""Sweeps of tiny models, run as commands in processes of their own."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import copied_process
from copied_process import Done

from switch_lm.storage import checkpoint

SMALL = [
    "model.num_layers=1", "model.d_model=16", "model.num_heads=2", "model.d_ff=16", "model.num_experts=2",
    "model.context_length=8", "model.dropout=0.1", "data.batch_size=4", "data.path=text.txt", "trainer.max_steps=4",
    "trainer.val_every=4", "logger.log_every=2", "logger.sample_length=0",
]  # fmt: skip


def block(job: Path) -> None:
    """Makes a job fail: a file stands where its checkpoints would go."""
    job.mkdir(parents=True)
    (job / "checkpoints").touch()


def command(folder: Path, *arguments: str) -> list[str]:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    flags = [argument for argument in arguments if argument.startswith("-")]
    return [sys.executable, "-m", "switch_lm.train", *flags, *SMALL, *(a for a in arguments if a not in flags)]


def run(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Done:
    return copied_process.run(*command(folder, *arguments)[2:], folder=folder, env=env)


def weights(job: Path) -> Any:
    content = checkpoint.read(job / "checkpoints" / "last.ckpt")
    return [content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")]


def rows(done: Done) -> list[str]:
    """The table's lines that begin with a job's number."""
    return [line for line in done.stdout.splitlines() if re.match(r" *\d+/\d+ ", line)]
