"""What variants are called: short, in the field's words, by what they differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from switch_lm.config.rules import show
from switch_lm.report.keys import is_routing

CAPACITY = "model.capacity_factor"
# In words of their own below, or said by the family.
OWN_WORDS = ("model.d_ff", "model.num_experts", "model.random_drop_rate", "alpha")
FAMILY = ("model.switch_every", "model.top_k", CAPACITY)


@dataclass(frozen=True)
class Name:
    label: str
    model: str  # without the capacity factor, for tables that have a column for it


def labels(configs: Sequence[Mapping[str, Any]]) -> list[Name]:
    """The names of variants that stand in one report, in their order; `configs` as of `groups.comparable`."""
    sparse = [config for config in configs if config["model.switch_every"] != 0]
    differing = _differing(configs, sparse)
    widths = {config["model.d_ff"] for config in sparse}
    usual_width = widths.pop() if len(widths) == 1 else None
    families = {_family(config) for config in configs}
    named = []
    for config in configs:
        dense = config["model.switch_every"] == 0
        parts = _parts(config, differing, usual_width)
        factor = [] if dense or (CAPACITY not in differing and (parts or len(sparse) > 1)) else [_capacity(config)]
        family = [_family(config)] if dense or len(families) > 1 or factor or not parts else []
        named.append(Name(", ".join([*family, *factor, *parts]), ", ".join([*family, *parts])))
    return named


def _differing(configs: Sequence[Mapping[str, Any]], sparse: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which variants differ: those of routing among sparse ones, which alone have any."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if len({repr(c.get(key)) for c in (sparse if is_routing(key) else configs)}) > 1]


def _family(config: Mapping[str, Any]) -> str:
    if config["model.switch_every"] == 0:
        return "dense"
    return "Switch" if config["model.top_k"] == 1 else f"top-{config['model.top_k']}"


def _capacity(config: Mapping[str, Any]) -> str:
    return "dropless" if config[CAPACITY] is None else f"factor {show(config[CAPACITY])}"


def _parts(config: Mapping[str, Any], differing: Sequence[str], usual_width: int | None) -> list[str]:
    dense, parts = config["model.switch_every"] == 0, []
    if "model.num_experts" in differing and not dense:
        experts = config["model.num_experts"]
        parts.append(f"{experts} expert" + ("s" if experts != 1 else ""))
    if "model.switch_every" in differing and not dense:
        every = config["model.switch_every"]
        parts.append(f"every {every} blocks" if every != 1 else "every block")
    if "model.d_ff" in differing and config["model.d_ff"] != usual_width:
        parts.append(f"d_ff {config['model.d_ff']}")
    if "alpha" in differing and not dense:
        parts.append(f"alpha {show(config['alpha'])}")
    if config.get("model.random_drop_rate"):
        parts.append(f"random drops {show(config['model.random_drop_rate'])}")
    others = [key for key in differing if key not in (*OWN_WORDS, *FAMILY)]
    return parts + [_other(key, config[key]) for key in others if config.get(key) is not None]


def _other(key: str, value: object) -> str:
    if key == "text":
        return f"text {str(value)[:6]}"
    return f"{key.removeprefix('model.').removeprefix('trainer.')} {show(value)}".replace("`", "'")
