"""What a value means for the type of its key, wherever it was written: one place for numbers, text, paths and null."""

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config.keys import ConfigError, Key, keys_of
from switch_lm.config.paths import expanded

NULLS = ("null", "none")
LARGEST = 2**64 - 1  # what anything here can count
SWITCHES = dict.fromkeys(("true", "yes", "on", "y", "1"), True) | dict.fromkeys(("false", "no", "off", "n", "0"), False)


def is_null(text: str) -> bool:
    return text.strip().lower() in NULLS


def types_of(kind: Any) -> tuple[tuple[Any, ...], bool]:
    """The types that a key may have, and whether it may be null."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(one for one in kinds if one is not type(None)), type(None) in kinds or kind is Any


def read(name: str, value: Any, kind: Any, *, path: bool = False) -> Any:
    """The value of the key `name` as its type has it; ConfigError with name, value and rule if it is of another."""
    kinds, nullable = types_of(kind)
    typed = value
    if isinstance(value, str) and is_null(value) and (nullable or path or kinds[0] in (int, float, bool)):
        value = None
    if value is None:
        if nullable:
            return None
        hint = "; a folder of this name is ./none" if path else ""
        raise ConfigError(f"{name}={_short(typed)}: cannot be null; leave it out for its default{hint}")
    if get_origin(kinds[0]) is list:
        if not isinstance(value, list | tuple):
            raise ConfigError(
                f"{name}={_short(value)}: must be a list, such as [{_short(value)}]" + ", or null" * nullable
            )
        (inner,) = get_args(kinds[0])
        return [read(f"{name}[{place}]", one, inner) for place, one in enumerate(value)]
    if kinds[0] not in READERS or len(kinds) > 1:
        return value
    rule, reader = READERS[kinds[0]]
    try:
        result = reader(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{name}={_short(value)}: {rule}" + ", or null" * nullable) from error
    if not path and kinds[0] is not Path:
        return result
    try:
        return type(result)(expanded(str(result)))
    except ConfigError as error:
        raise ConfigError(f"{name}={error}") from error


def whole(value: Any) -> int:
    """A whole number in any spelling that is exact, such as 1e3 and 1_000; ValueError for anything else."""
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(value) from None
    if isinstance(value, bool) or not number.is_finite() or abs(number) > LARGEST or number != int(number):
        raise ValueError(value)
    return int(number)


def _real(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _switch(value: Any) -> bool:
    try:
        return SWITCHES[str(value).lower()]
    except KeyError as error:
        raise ValueError(value) from error


def _text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise ValueError(value)
    return str(value)


READERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("must be a whole number", whole),
    float: ("must be a number", _real),
    bool: ("must be true or false", _switch),
    str: ("must be text; in a YAML file put it in quotes", _text),
    Path: ("must be text; in a YAML file put it in quotes", lambda value: Path(_text(value))),
}


def build(
    owner: type,
    values: Any,
    *,
    unknown: Callable[[str], str],
    prefix: str = "",
    parts: Mapping[str, type] | None = None,
) -> tuple[Any, list[str]]:
    """A dataclass of keys from plain values, and a line for each value that it cannot have (its default stands then).

    `unknown`: the line for a key that there is not. `parts`: the classes of its groups, where the default is another.
    """
    if not isinstance(values, Mapping):
        return owner(), [f"{prefix.rstrip('.')}={_short(values)}: must hold keys"]
    known, arguments, wrong = {field.name: field for field in fields(owner)}, {}, []
    keys = _keys(owner, prefix)
    for name, value in values.items():
        if name not in known:
            wrong.append(unknown(f"{prefix}{name}"))
            continue
        part: Any = (parts or {}).get(name, known[name].default_factory)
        if isinstance(part, type) and is_dataclass(part):
            arguments[name], lines = build(part, value, unknown=unknown, prefix=f"{prefix}{name}.")
            wrong += lines
            continue
        key = keys[f"{prefix}{name}"]
        if key.type is str and key.rule is not None and is_null(str(value)) and not key.path:
            value = "none" if key.rule.holds("none") else value  # a choice of this key, such as logger.progress=none
        try:
            arguments[name] = read(key.name, value, key.type, path=key.path)
            if not _is_readable(key.type):
                arguments[name] = _by_omegaconf(owner, name, value)
        except ConfigError as error:
            example = "" if key.default in (None, []) else f"; for example {key.name}={show(key.default)}"
            wrong.append(f"{error}{example}")
        except OmegaConfBaseException as error:
            wrong.append(f"{key.name}={_short(value)}: {str(error).splitlines()[0]}")
    return owner(**arguments), wrong


_KEYS: dict[tuple[type, str], dict[str, Key]] = {}


def _keys(owner: type, prefix: str) -> dict[str, Key]:
    """Those of a class, which are looked up for each of a sweep's thousand jobs."""
    if (owner, prefix) not in _KEYS:
        _KEYS[owner, prefix] = keys_of(owner, prefix)
    return _KEYS[owner, prefix]


def _is_readable(kind: Any) -> bool:
    kinds, _ = types_of(kind)
    return len(kinds) == 1 and (kinds[0] in (*READERS, Any) or get_origin(kinds[0]) in (list, dict))


def _by_omegaconf(owner: type, name: str, value: Any) -> Any:
    """For a type that only a plugin's key has, such as an Enum."""
    merged: Any = OmegaConf.merge(OmegaConf.structured(owner), {name: value})
    return getattr(OmegaConf.to_object(merged), name)


def literal(text: str) -> str:
    """A text in which OmegaConf interpolates nothing."""
    return re.sub(r"(\\*)\$\{", lambda match: rf"{match[1] * 2}\${{", text)


def literals(tree: Any) -> Any:
    """A tree of plain values with each text as a literal."""
    if isinstance(tree, dict):
        return {key: literals(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literals(value) for value in tree]
    return literal(tree) if isinstance(tree, str) else tree


def _short(value: object) -> str:
    text = show(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def show(value: object) -> str:
    """A value as it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
