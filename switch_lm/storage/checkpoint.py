"""What a checkpoint file holds, how it is written whole, and how a model comes back from it without Lightning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM
from switch_lm.storage.files import remedy, replacing
from switch_lm.storage.runs import checkpoints, damage, newest_whole
from switch_lm.text.vocabulary import Vocabulary

KEY = "switch_lm"  # our entry in Lightning's checkpoint
MODEL_PREFIX = "model."  # where the LightningModule keeps the model's weights


class CheckpointError(Exception):
    """A file that is not a usable checkpoint; the message says which and why."""


@dataclass(frozen=True)
class Header:
    """What a reader must know beside the weights, as plain data, so that `weights_only=True` loads it."""

    model: dict[str, Any]
    vocabulary: str
    corpus_sha256: str
    precision: str
    config: dict[str, Any]

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a file; of a run folder its best checkpoint, or else its last."""
    if path.is_file():
        return path
    if found := checkpoints(path):
        return found[0]
    rule = "it must be a .ckpt file or the folder of a run that has saved a checkpoint"
    raise CheckpointError(f"no checkpoint at {path}: {rule}; let the run reach its first validation, or give another")


def read(path: Path) -> dict[str, Any]:
    """The whole checkpoint as plain containers and tensors on the CPU, its checksums verified.

    No code in the file is run: CheckpointError for anything but tensors and plain data.
    """
    if (damaged := damage(path)) is not None:
        raise CheckpointError(f"{path} can not be read as a checkpoint: {damaged}; {_another(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        reason = " ".join(str(error).split()) or type(error).__name__
        if "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain data, which could run code; it was not opened"
        raise CheckpointError(f"{path} can not be read as a checkpoint: {reason[:200]}; {_another(path)}") from error
    if not isinstance(content, dict) or KEY not in content:
        raise CheckpointError(f"{path} is not a checkpoint of switch_lm: it has no {KEY!r} entry; {_another(path)}")
    return content


def _another(path: Path) -> str:
    """What to use in place of a checkpoint that can't be read."""
    if (good := newest_whole(path.parent, but=path)) is not None:
        return f"the newest good one there is {good}"
    return "there is no good one beside it: give another, or train anew"


def read_model(path: Path) -> tuple[SwitchLM, Header]:
    """The model in `eval()` on the CPU, and its header, from a checkpoint or a run folder."""
    path = find_checkpoint(path)
    content = read(path)
    try:
        header = Header(**content[KEY])
        model = SwitchLM(ModelConfig(**header.model), len(header.vocabulary))
        weights = {
            name.removeprefix(MODEL_PREFIX): value
            for name, value in content["state_dict"].items()
            if name.startswith(MODEL_PREFIX)
        }
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:  # a key or a weight that this version does not know, or lacks
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} does not fit this version of switch_lm ({reason}); train the run anew"
        ) from error
    return model.eval(), header


def load(path: str | Path) -> tuple[SwitchLM, Vocabulary]:
    """A trained model, ready for use in a notebook, and its vocabulary. `path`: a checkpoint or the folder of a run."""
    model, header = read_model(Path(path))
    return model, Vocabulary(header.vocabulary)


def write(content: dict[str, Any], path: Path) -> None:
    """Saves so that `path` holds the old file or the whole new one; CheckpointError if the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        if (cause := _disk_error(error)) is None:
            raise
        size = f"{_num_bytes(content) / 2**20:,.1f} MiB"
        raise CheckpointError(f"{path} ({size}) could not be written: {cause.strerror}{remedy(cause)}") from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: torch.save raises a RuntimeError of its own while that is handled."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _num_bytes(content: Any) -> int:
    """Of all tensors in nested containers, which is nearly all that a checkpoint holds."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(_num_bytes(part) for part in parts)
