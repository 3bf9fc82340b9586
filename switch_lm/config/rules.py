"""The rules a configuration must meet, checked once, before anything is downloaded or written."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config import boards
from switch_lm.config.schema import KEYS, Config

REMOVED = {"data.num_workers": "batches need no workers: leave it out"}


class ConfigError(Exception):
    """What is wrong with a configuration: each line names key, value, rule and fix."""


def refusal(error: ConfigError) -> str:
    """What a command prints of it."""
    return f"The configuration cannot be used:\n{error}"


Row = tuple[str, Callable[[Config], bool], str, str]  # key, does it hold, rule, fix

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
        "cannot be more than model.num_experts",
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
        "rerouting is defined for one choice per token: a second choice may be taken already",
        "model.overflow=drop, or model.top_k=1",
    ),
    (
        "model.selection_bias_rate",
        lambda c: c.model.selection_bias_rate == 0 or c.model.selection == "argmax",
        "a bias moves the largest score and does nothing to a random draw",
        "model.selection=argmax",
    ),
]


def resolve(cfg: DictConfig | Config) -> Config:
    """The typed configuration. ConfigError if a key is unknown, a type is wrong or values break rules (all at once).

    Merged with the schema once more because Hydra lets `+key=value` add any key.
    """
    if isinstance(cfg, Config):
        cfg = OmegaConf.structured(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        merged = OmegaConf.merge(_schema_for(plain), _text_switches(plain))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    assert isinstance(config, Config)
    config.logger.boards, wrong = boards.with_defaults(config.logger.boards)
    if broken := _broken(config) + wrong:
        raise ConfigError("\n".join(broken))
    return config


def _schema_for(plain: Any) -> DictConfig:
    """The schema; without its default boards where the configuration has its own, since merging would add to them."""
    schema = OmegaConf.structured(Config)
    if isinstance(plain, dict) and "boards" in (plain.get("logger") or {}):
        schema.logger.boards = {}
    return schema


def _broken(config: Config) -> list[str]:
    """A line for each rule that does not hold."""
    values = flatten(asdict(config))
    lines = [
        f"{key.name}={show(values[key.name])}: {key.rule.text}; for example {key.name}={show(key.default)}"
        for key in KEYS.values()
        if key.rule is not None and values[key.name] is not None and not key.rule.holds(values[key.name])
    ]
    return lines + [
        f"{key}={show(values[key])}: {rule}; {fix}" for key, holds, rule, fix in COMBINATIONS if not holds(config)
    ]


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
    if key in REMOVED:
        return f"{key}: no such key any more; {REMOVED[key]}"
    known = list(KEYS)
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
