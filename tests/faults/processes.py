"""A small run as a user starts it, in a process of its own that can be signalled and killed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from copied_process import Done, run, start

from switch_lm.storage import checkpoint, metrics

SMALL = [
    "model.num_layers=2", "model.d_model=32", "model.num_heads=2", "model.d_ff=32", "model.num_experts=4",
    "model.context_length=16", "model.dropout=0.1", "data.batch_size=8", "data.path=text.txt", "trainer.val_every=50",
    "trainer.checkpoint_every=20", "trainer.compile=false", "trainer.threads=1", "logger.log_every=5",
    "logger.sample_length=0", "logger.progress=lines",
]  # fmt: skip
TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps on. " * 60
# Run before the command, this makes a moment long enough to be met.
SLOW_VALIDATION = """
import time
from switch_lm.training.module import SwitchModule
step = SwitchModule.validation_step
def slow(self, batch, number):
    print("validating", flush=True)
    time.sleep(0.2)
    step(self, batch, number)
SwitchModule.validation_step = slow
"""
PATIENCE = 120.0  # seconds; a machine that is busy is no fault


def command(folder: Path, *arguments: str) -> list[str]:
    if not (folder / "text.txt").exists():
        (folder / "text.txt").write_text(TEXT)
    flags = [argument for argument in arguments if argument.startswith("-")]
    return [sys.executable, "-m", "switch_lm.train", *flags, *SMALL, *(a for a in arguments if a not in flags)]


def finished(folder: Path, *arguments: str) -> Done:
    """A whole command."""
    return run(*command(folder, *arguments)[2:], folder=folder)


class Started:
    """A running command, and all that it has printed. `before`: Python that the process runs first."""

    def __init__(self, folder: Path, *arguments: str, before: str = "") -> None:
        self.output = ""
        words, (end, written) = command(folder, *arguments), os.pipe()
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        with Path(os.devnull).open() as nothing:
            streams = (nothing.fileno(), written, written)
            self.process = start(*words[2:], folder=folder, env=env, streams=streams, before=before)
        os.close(written)
        self._lines = os.fdopen(end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._lines:
            for line in self._lines:
                self.output += line

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.output, f"printed {text!r}")

    def wait_for_file(self, folder: Path, pattern: str) -> None:
        self.wait_until(lambda: any(folder.glob(pattern)), f"wrote {folder}/{pattern}")

    def wait_for_newer(self, path: Path) -> None:
        """Than it is now."""
        before = path.stat().st_mtime_ns if path.exists() else 0
        self.wait_until(lambda: path.exists() and path.stat().st_mtime_ns > before, f"wrote {path} again")

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self._reader.is_alive() and time.monotonic() < deadline, f"never {what}:\n{self.output}"
            time.sleep(0.002)

    def end(self, *signals: int) -> int:
        """Sends the signals, a moment apart, and returns the exit code."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.1)  # two at once would be one: signals of a kind do not queue
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def kill(self) -> None:
        assert self.end(signal.SIGKILL) == -signal.SIGKILL, self.output


def state(run: Path) -> list[Any]:
    """What the last checkpoint holds of the training: weights, optimizers, schedule."""
    content = checkpoint.read(run / "checkpoints" / "last.ckpt")
    return [content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")]


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values of a tag in the order in which they were logged."""
    return [(row["step"], row[tag]) for row in metrics.read(run) if tag in row]


def sha256(run: Path) -> str:
    """Of weights, optimizer state, schedule and all validation losses, bit for bit."""
    digest = hashlib.sha256()
    _add(digest.update, [*state(run), scalars(run, "val/loss")])
    return digest.hexdigest()


def _add(update: Callable[[bytes], None], content: Any) -> None:
    if isinstance(content, torch.Tensor):
        update(content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(content, dict):
        for key, value in content.items():
            update(repr(key).encode())
            _add(update, value)
    elif isinstance(content, list | tuple):
        update(repr(len(content)).encode())
        for value in content:
            _add(update, value)
    else:
        update(repr(content).encode())
