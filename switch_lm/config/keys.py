"""How a configuration key is declared: type, default, meaning and rule stand once, in the field of its dataclass."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints


class ConfigError(Exception):
    """What is wrong with a configuration: each line names key, value, rule and fix."""


@dataclass(frozen=True)
class Rule:
    """What a value must meet, in words and as a test; null, where the type allows it, always meets it."""

    text: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """A key, for what shows or checks it."""

    name: str
    default: Any
    meaning: str
    rule: Rule | None
    changes_result: bool  # whether what is computed depends on it
    implied: Any  # its value in a run whose file does not state it
    path: bool = False  # a file or folder, in which `~` is a home
    short: str = ""  # in names of jobs; empty: the first four letters of its last part
    type: Any = Any


def key(
    default: Any,
    meaning: str,
    rule: Rule | None = None,
    *,
    changes_result: bool = True,
    implied: Any = MISSING,
    path: bool = False,
    short: str = "",
) -> Any:
    """A dataclass field that is a configuration key. `implied`: the default, unless given."""
    implied = default if implied is MISSING else implied
    metadata = {
        "meaning": meaning, "rule": rule, "changes_result": changes_result, "implied": implied, "path": path,
        "short": short,
    }  # fmt: skip
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(owner: type, prefix: str = "") -> dict[str, Key]:
    """Every key below a dataclass by its dotted name, in order."""
    keys: dict[str, Key] = {}
    types = get_type_hints(owner)
    for field in fields(owner):
        name = prefix + field.name
        factory: Any = field.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            keys |= keys_of(factory, f"{name}.")
        else:
            default = field.default if factory is MISSING else factory()
            metadata = dict(field.metadata) or {  # a plain field, of a plugin
                "meaning": "", "rule": None, "changes_result": True, "implied": default
            }  # fmt: skip
            keys[name] = Key(name, default, **metadata, type=types[field.name])
    return keys


def one_of(*choices: str) -> Rule:
    return Rule(f"must be one of {', '.join(choices)}", lambda value: value in choices)


def at_least(low: int) -> Rule:
    return Rule(f"must be at least {low}", lambda value: value >= low)


def within(low: float, high: float) -> Rule:
    shown = " .. ".join(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (low, high))
    return Rule(f"must lie in {shown}", lambda value: low <= value <= high)


FILLED = Rule("cannot be empty", lambda value: str(value).strip() != "")
POSITIVE = Rule("must be a positive number", lambda value: 0 < value < math.inf)
POSITIVE_OR_NULL = Rule("must be a positive number, or null for no limit", POSITIVE.holds)
BELOW_ONE = Rule("must lie in 0 .. 1, without 1", lambda value: 0 <= value < 1)
NAME = Rule(
    "may hold letters, digits, '.', '_', '+' and '-', and may not begin with '.', '+' or '-'",
    lambda value: re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", value) is not None,
)
