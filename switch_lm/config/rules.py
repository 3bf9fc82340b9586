"""The rules a configuration must meet, checked once, before anything is downloaded or written."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config.schema import Config

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class ConfigError(Exception):
    """What is wrong with a configuration: each line names key, value, rule and fix."""


Row = tuple[str, Callable[[Config], bool], str, str]  # key, does it hold, rule, fix


def _one_of(key: str, read: Callable[[Config], str], *choices: str) -> Row:
    return key, lambda c: read(c) in choices, f"must be one of {', '.join(choices)}", f"for example {key}={choices[0]}"


def _at_least(key: str, read: Callable[[Config], float], low: float, example: object) -> Row:
    return key, lambda c: read(c) >= low, f"must be at least {low:g}", f"for example {key}={example}"


def _positive(key: str, read: Callable[[Config], float], example: object) -> Row:
    return key, lambda c: 0 < read(c) < math.inf, "must be a positive number", f"for example {key}={example}"


def _within(key: str, read: Callable[[Config], float], low: float, high: float, example: object) -> Row:
    return key, lambda c: low <= read(c) <= high, f"must lie in {low:g} .. {high:g}", f"for example {key}={example}"


def _below_one(key: str, read: Callable[[Config], float], example: object) -> Row:
    return key, lambda c: 0 <= read(c) < 1, "must lie in 0 .. 1, without 1", f"for example {key}={example}"


def _capacity(key: str, read: Callable[[Config], float | None]) -> Row:
    def holds(config: Config) -> bool:
        value = read(config)
        return value is None or 0 < value < math.inf

    return key, holds, "must be a positive number, or null for no limit", f"for example {key}=1.25 or {key}=null"


def _run_name(key: str, read: Callable[[Config], str | None]) -> Row:
    def holds(config: Config) -> bool:
        value = read(config)
        return value is None or RUN_NAME.fullmatch(value) is not None

    return key, holds, "may hold letters, digits, '.', '_' and '-', and begins with none of '.-'", f"{key}=my_run"


COMBINATIONS: list[Row] = [
    (
        "model.num_heads",
        lambda c: c.model.num_heads < 1 or c.model.d_model % c.model.num_heads == 0,
        "must divide model.d_model",
        "choose a divisor of model.d_model",
    ),
    (
        "model.position",
        lambda c: (
            c.model.position != "rotary"
            or c.model.num_heads < 1
            or c.model.d_model % c.model.num_heads != 0
            or c.model.d_model // c.model.num_heads % 2 == 0
        ),
        "rotary needs an even head width (d_model / num_heads)",
        "change model.num_heads, or model.position=learned",
    ),
    (
        "model.top_k",
        lambda c: c.model.num_experts < 1 or c.model.top_k <= c.model.num_experts,
        "can not be more than model.num_experts",
        "lower model.top_k or raise model.num_experts",
    ),
    (
        "model.renormalize_gates",
        lambda c: not c.model.renormalize_gates or c.model.top_k >= 2,
        "over a single choice the gate would be a constant 1, and the router would learn nothing from the text",
        "model.renormalize_gates=false, or model.top_k=2",
    ),
    (
        "model.gate_scale",
        lambda c: c.model.gate_scale == "probability" or not c.model.renormalize_gates,
        "a gate is either renormalised or straight-through, not both",
        "model.gate_scale=probability",
    ),
    (
        "model.queue_order",
        lambda c: c.model.queue_order == "token" or c.model.top_k >= 2,
        "there are no second choices at top_k=1",
        "model.queue_order=token",
    ),
    (
        "model.overflow",
        lambda c: c.model.overflow != "reroute" or c.model.top_k == 1,
        "rerouting is defined for one choice a token: a second choice may be taken already",
        "model.overflow=drop, or model.top_k=1",
    ),
    (
        "model.selection_bias_rate",
        lambda c: c.model.selection_bias_rate == 0 or c.model.selection == "argmax",
        "a bias moves the largest score and does nothing to a random draw",
        "model.selection=argmax",
    ),
]

RULES: list[Row] = [
    _at_least("model.num_layers", lambda c: c.model.num_layers, 1, 4),
    _at_least("model.d_model", lambda c: c.model.d_model, 1, 128),
    _at_least("model.num_heads", lambda c: c.model.num_heads, 1, 4),
    _at_least("model.d_ff", lambda c: c.model.d_ff, 1, 512),
    _at_least("model.context_length", lambda c: c.model.context_length, 1, 128),
    _one_of("model.position", lambda c: c.model.position, "rotary", "learned", "none"),
    _one_of("model.activation", lambda c: c.model.activation, "relu", "relu_squared", "gelu"),
    _below_one("model.dropout", lambda c: c.model.dropout, 0.1),
    _positive("model.init_scale", lambda c: c.model.init_scale, 0.1),
    _at_least("model.switch_every", lambda c: c.model.switch_every, 0, 1),
    _at_least("model.num_experts", lambda c: c.model.num_experts, 1, 8),
    _capacity("model.capacity_factor", lambda c: c.model.capacity_factor),
    _capacity("model.eval_capacity_factor", lambda c: c.model.eval_capacity_factor),
    _at_least("model.top_k", lambda c: c.model.top_k, 1, 1),
    _one_of("model.gate_scale", lambda c: c.model.gate_scale, "probability", "straight_through"),
    _one_of("model.selection", lambda c: c.model.selection, "argmax", "sample"),
    _one_of("model.drop_order", lambda c: c.model.drop_order, "position", "random", "probability"),
    _one_of("model.queue_order", lambda c: c.model.queue_order, "token", "choice"),
    _one_of("model.overflow", lambda c: c.model.overflow, "drop", "reroute", "passthrough"),
    _below_one("model.random_drop_rate", lambda c: c.model.random_drop_rate, 0.05),
    _one_of("model.capacity_group", lambda c: c.model.capacity_group, "batch", "sequence"),
    _below_one("model.router_jitter", lambda c: c.model.router_jitter, 0.01),
    _below_one("model.router_input_dropout", lambda c: c.model.router_input_dropout, 0.1),
    _below_one("model.expert_dropout", lambda c: c.model.expert_dropout, 0.4),
    _within("model.selection_bias_rate", lambda c: c.model.selection_bias_rate, 0, 1, 0.001),
    _at_least("data.batch_size", lambda c: c.data.batch_size, 1, 32),
    _at_least("data.num_workers", lambda c: c.data.num_workers, 0, 0),
    _one_of("optim.name", lambda c: c.optim.name, "muon", "adamw"),
    _positive("optim.lr", lambda c: c.optim.lr, 0.003),
    _positive("optim.matrix_lr", lambda c: c.optim.matrix_lr, 0.02),
    _within("optim.weight_decay", lambda c: c.optim.weight_decay, 0, 10, 0.1),
    _within("optim.matrix_weight_decay", lambda c: c.optim.matrix_weight_decay, 0, 10, 0.1),
    _below_one("optim.beta1", lambda c: c.optim.beta1, 0.9),
    _below_one("optim.beta2", lambda c: c.optim.beta2, 0.95),
    _below_one("optim.momentum", lambda c: c.optim.momentum, 0.95),
    _at_least("optim.expert_update_every", lambda c: c.optim.steps_between_moves(c.model.num_experts), 1, 2),
    _one_of("optim.schedule", lambda c: c.optim.schedule, "linear", "cosine", "noam"),
    _at_least("optim.warmup_steps", lambda c: c.optim.warmup_steps, 0, 20),
    _within("optim.min_factor", lambda c: c.optim.min_factor, 0, 1, 0.1),
    _positive("optim.grad_clip", lambda c: c.optim.grad_clip, 1.0),
    _at_least("trainer.max_steps", lambda c: c.trainer.max_steps, 1, 1800),
    _at_least("trainer.accumulate", lambda c: c.trainer.accumulate, 1, 1),
    _at_least("trainer.val_every", lambda c: c.trainer.val_every, 1, 300),
    _at_least("trainer.checkpoint_every", lambda c: c.trainer.checkpoint_every, 1, 100),
    _at_least("trainer.keep_best", lambda c: c.trainer.keep_best, 1, 1),
    _one_of("trainer.device", lambda c: c.trainer.device, "auto", "cpu", "cuda"),
    _one_of("trainer.precision", lambda c: c.trainer.precision, "auto", "bf16", "fp32"),
    _one_of("trainer.compile", lambda c: c.trainer.compile, "auto", "true", "false"),
    _at_least("trainer.threads", lambda c: 1 if c.trainer.threads is None else c.trainer.threads, 1, 2),
    (
        "trainer.max_time",
        lambda c: c.trainer.max_seconds() > 0,
        "must be a time as hours:minutes:seconds, or null for no limit",
        "for example trainer.max_time=00:20:00",
    ),
    _at_least("logger.log_every", lambda c: c.logger.log_every, 1, 10),
    _at_least("logger.sample_length", lambda c: c.logger.sample_length, 0, 300),
    _one_of("logger.progress", lambda c: c.logger.progress, "auto", "bar", "lines", "none"),
    _at_least("health.every", lambda c: c.health.every, 0, 50),
    _within("health.max_share", lambda c: c.health.max_share, 0, 1, 0.75),
    _at_least("health.checks", lambda c: c.health.checks, 1, 3),
    _one_of("router_alarm", lambda c: c.router_alarm, "warn", "error"),
    _within("alpha", lambda c: c.alpha, 0, 1e6, 0.01),
    _within("z_loss", lambda c: c.z_loss, 0, 1e6, 0.001),
    _within("importance", lambda c: c.importance, 0, 1e6, 0.01),
    _within("seed", lambda c: c.seed, 0, 2**63 - 1, 0),
    _run_name("name", lambda c: c.name),
    _run_name("resume", lambda c: c.resume),
    *COMBINATIONS,
]


def resolve(cfg: DictConfig | Config) -> Config:
    """The typed configuration. ConfigError if a key is unknown, a type is wrong or values break rules (all at once).

    Merged with the schema once more because Hydra lets `+key=value` add any key.
    """
    if isinstance(cfg, Config):
        cfg = OmegaConf.structured(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(Config), _text_switches(plain))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(config, Config)
    broken = [row for row in RULES if not row[1](config)]
    if broken:
        values = flatten(asdict(config))
        raise ConfigError("\n".join(f"{key}={show(values[key])}: {rule}; {fix}" for key, _, rule, fix in broken))
    return config


def _text_switches(plain: Any) -> Any:
    """`trainer.compile=true` is parsed as a boolean; the key holds auto, true or false as text."""
    if isinstance(plain, dict) and isinstance(plain.get("trainer"), dict):
        value = plain["trainer"].get("compile")
        if isinstance(value, bool):
            plain["trainer"]["compile"] = str(value).lower()
    return plain


def _explain(error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", "") or "")
    reason = str(error).splitlines()[0]
    if "not in 'Config'" in reason or "Key '" in reason:
        return unknown_key(key)
    hint = "; for no limit write null" if "none" in reason.lower() else ""
    return f"{key}: {reason}{hint}"


def unknown_key(key: str) -> str:
    """The message for a key that no configuration has, with the nearest ones that exist."""
    known = list(flatten(asdict(Config())))
    near = difflib.get_close_matches(key, known, n=3) or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    hint = f"did you mean {' or '.join(near)}?" if near else "`python -m switch_lm.train --cfg job` lists all keys"
    return f"{key}: no such key; {hint}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def show(value: object) -> str:
    """A value as it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
