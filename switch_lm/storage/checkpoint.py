"""Checkpoints: their content, how they are written, and how a model is read without Lightning."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import keys_of
from switch_lm.config.plugins import load_plugins, not_loaded
from switch_lm.config.rules import unknown_key
from switch_lm.config.schema import KEYS, Config
from switch_lm.model.config import ModelConfig
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.options import BalanceOptions
from switch_lm.storage.files import remedy, replacing
from switch_lm.storage.runs import EXPORT_CONFIG, VOCABULARY, WEIGHTS, checkpoints, damage, newest_whole

KEY = "switch_lm"  # our entry in Lightning's checkpoints
AVERAGES = "averages"  # of the weights, in a checkpoint: by average, then by parameter
EXPORT_FORMAT = 1  # of the config.json of an export
MODEL_PREFIX = "model."  # the prefix of the model's weights in the LightningModule


class CheckpointError(Exception):
    """A file is not a usable checkpoint, or could not be written; the message says which and why."""


class OtherVersionError(CheckpointError):
    """A checkpoint or an export that this version of switch_lm cannot read, though another one may."""


@dataclass(frozen=True)
class Header:
    """What a reader needs besides the weights, as plain data, so that `weights_only=True` loads it."""

    model: dict[str, Any]
    router: dict[str, Any]
    balance: dict[str, Any]
    vocabulary: str
    corpus_sha256: str
    precision: str
    config: dict[str, Any]
    plugins: list[str] = field(default_factory=list)  # names of modules, for messages: none is imported
    start: str = ""  # where a text begins that has no prompt; empty: the vocabulary decides, as for older checkpoints

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a file; otherwise a run folder's best checkpoint, its last, or an export's weights."""
    if path.is_file():
        return path
    if existing := [*checkpoints(path), *path.glob(WEIGHTS)]:
        return existing[0]
    rule = "it must be a .ckpt file, an export, or the folder of a run that has saved a checkpoint"
    raise CheckpointError(f"no checkpoint at {path}: {rule}; let the run reach its first validation, or give another")


def read(path: Path) -> dict[str, Any]:
    """The whole checkpoint as plain containers and tensors on the CPU, after verifying its checksums; or an export.

    No code in the file is run: CheckpointError if it holds anything but tensors and plain data, or is damaged.
    """
    if path.name == WEIGHTS:
        return _read_export(path.parent)
    if (damaged := damage(path)) is not None:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {damaged}; {_another(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        reason = " ".join(str(error).split()) or type(error).__name__
        if "Weights only load failed" in reason:
            reason = "it holds more than tensors and plain data, which could run code; it was not opened"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason[:200]}; {_another(path)}") from error
    if not isinstance(content, dict) or KEY not in content:
        raise CheckpointError(f"{path} is not a checkpoint of switch_lm: it has no {KEY!r} entry; {_another(path)}")
    return content


def _read_export(folder: Path) -> dict[str, Any]:
    """What `python -m switch_lm.export` wrote, as a checkpoint has it."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        fix = "pip install 'switch-lm[export]'"
        raise CheckpointError(f"{folder}: an export needs the package safetensors, which is missing: {fix}") from error
    try:
        config, vocabulary = (json.loads((folder / name).read_bytes()) for name in (EXPORT_CONFIG, VOCABULARY))
        if (number := config["format"]) != EXPORT_FORMAT:
            raise ValueError(f"{EXPORT_CONFIG} has format {number}, and this version reads {EXPORT_FORMAT}")
        header = config["switch_lm"] | {"vocabulary": vocabulary["characters"], "start": vocabulary["start"]}
        return {KEY: header, "state_dict": load_file(folder / WEIGHTS)}
    except Exception as error:  # of json and safetensors, or a part that is missing
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        fix = "make it again: python -m switch_lm.export --run NAME --to DIR"
        raise OtherVersionError(f"{folder} is no export that this version can read ({reason}); {fix}") from error


def _another(path: Path) -> str:
    """What to use instead of a checkpoint that cannot be read."""
    if (good := newest_whole(path.parent, but=path)) is not None:
        return f"the newest good one there is {good}"
    return "there is no good one beside it: give another, or train again"


def read_model(path: Path, *, average: str | None = None) -> tuple[SwitchLM, Header]:
    """The model in `eval()` on the CPU, and its header, from a checkpoint or a run folder; or CheckpointError.

    `average`: the name of the one that takes the place of its weights. PluginError if the plugin that has its router is
    not loaded.
    """
    load_plugins()
    path = find_checkpoint(path)
    content = read(path)
    if "router" not in content[KEY]:
        fix = "train the run again, or use the version that wrote it"
        raise OtherVersionError(f"{path} is of an older version of switch_lm, which stored no router; {fix}")
    if average is not None and average not in (there := content.get(AVERAGES, {})):
        names = f"{', '.join(there)}: name one of these" if there else f"none: train with optim.averages=[{average}]"
        raise CheckpointError(f"{path} has no average {average} of the weights; it has {names}")
    try:
        header = Header(**content[KEY])
        if (name := str(header.router.get("name", KEYS["router.name"].default))) not in FAMILIES["router"]:
            raise not_loaded(str(path), "router", name, header.plugins)
        family = FAMILIES["router"][name].options
        router = family(**_complete(header.router, family, path, "router."))
        balance = BalanceOptions(**_complete(header.balance, BalanceOptions, path, "balance."))
        sizes = ModelConfig(**_complete(header.model, ModelConfig, path, "model."))
        header = replace(header, config=_all_keys(header.config))
        model = SwitchLM(sizes, len(header.vocabulary), router=router, balance=balance)
        weights = {
            name.removeprefix(MODEL_PREFIX): value
            for name, value in content["state_dict"].items()
            if name.startswith(MODEL_PREFIX)
        }
        model.load_state_dict(weights)
        if average is not None:
            weights = content[AVERAGES][average]
            model.load_state_dict(weights, strict=False)  # buffers, which have no average, are as they were
    except (KeyError, TypeError, RuntimeError) as error:  # a key or a weight is unknown or missing
        reason = " ".join(str(error).split())[:200]
        raise OtherVersionError(
            f"{path} does not fit this version of switch_lm ({reason}); train the run again"
        ) from error
    if (bad := next((name for name, value in weights.items() if not value.isfinite().all()), None)) is not None:
        raise CheckpointError(f"{path}: {bad} has values that are not finite; take another checkpoint of the run")
    return model.eval(), header


def _complete(stored: dict[str, Any], owner: type, path: Path, prefix: str) -> dict[str, Any]:
    """What a checkpoint states, a key that it lacks at what that implies; OtherVersionError for one that is unknown."""
    known = {name.removeprefix(prefix): key.implied for name, key in keys_of(owner, prefix).items()}
    if unknown := sorted(stored.keys() - known):
        problem = f"{path} states {prefix}{unknown[0]}={stored[unknown[0]]}, which this version does not know"
        raise OtherVersionError(f"{problem} ({unknown_key(prefix + unknown[0])}); use the version that wrote it")
    return known | stored


def _all_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The stored configuration with every key that it lacks at what that implies, for those who read it by name."""
    whole: dict[str, Any] = {group: dict(value) for group, value in config.items() if isinstance(value, dict)}
    whole = config | whole
    for name, key in keys_of(Config).items():
        group, _, last = name.rpartition(".")
        if group not in FAMILIES and "." not in group:
            (whole.setdefault(group, {}) if group else whole).setdefault(last, key.implied)
    return whole


def write(content: dict[str, Any], path: Path) -> None:
    """Writes the content to `path` atomically; CheckpointError, with path and size, if the disk refuses it."""
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
    """The OSError that caused an error: torch.save raises a RuntimeError while it handles one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _num_bytes(content: Any) -> int:
    """The size of all tensors in nested containers, which is nearly that of the checkpoint."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(_num_bytes(part) for part in parts)
