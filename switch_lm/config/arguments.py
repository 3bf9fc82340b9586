"""What was typed, as Hydra is to read it: text stays text, numbers are exact, and flags may stand anywhere.

Hydra takes a value for a number, a list or an interpolation by its look; here the type of its key decides.
"""

import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from switch_lm.config import boards
from switch_lm.config.keys import ConfigError, Key
from switch_lm.config.paths import config_dir
from switch_lm.config.reading import is_null, literal, types_of, whole
from switch_lm.config.schema import KEYS

OF_A_WHOLE_SWEEP = ("name", "resume", "outputs")  # a comma in them is a comma
QUOTED = re.compile(r"""\s*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*""", re.DOTALL)
VALUE = re.compile(rf"(?:{QUOTED.pattern}|\s*\w+\s*\([^()]*\)\s*|\s*\[[^\[\]]*\]\s*)(?=,|$)|[^,]*", re.DOTALL)
FUNCTION = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag)\s*\(.*\)", re.DOTALL)
CHOICE = re.compile(r"choice\s*\((.*)\)", re.DOTALL)
SWEEP_FLAGS = ("-m", "--multirun")
WITH_WORD = re.compile(r"-c|--cfg|-p|--package|-i|--info|-c[pnd]|--config-(path|name|dir)|--experimental-rerun")


def prepared(arguments: Sequence[str], *, groups: set[str]) -> list[str]:
    """The overrides, then the flags, of a command line; ConfigError for what is neither. Idempotent."""
    if any(argument.startswith(("-sc", "--shell")) for argument in arguments):
        return list(arguments)  # shell completion, of half a line
    overrides, flags = _parted(arguments, groups)
    sweep = any(flag in SWEEP_FLAGS for flag in flags) or "hydra.mode=MULTIRUN" in overrides
    return [as_typed(override, sweep=sweep or _is_sweep(override, overrides)) for override in overrides] + flags


def _parted(arguments: Sequence[str], groups: set[str]) -> tuple[list[str], list[str]]:
    overrides: list[str] = []
    flags: list[str] = []
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        if argument.startswith("-"):
            _require_flag(argument, arguments[place + 1 : place + 2], groups)
            flags.append(argument)
        elif WITH_WORD.fullmatch(before) and ("=" not in argument or before[:2] not in ("-i", "--")):
            flags.append(argument)
        elif "=" in argument[1:] or argument.startswith(("~", "+")):
            overrides.append(argument)
        else:
            raise ConfigError(_explain_word(argument, before, arguments[place + 1 : place + 3], groups))
    return overrides, flags


def _require_flag(argument: str, after: Sequence[str], groups: set[str]) -> None:
    word, _, value = argument.lstrip("-").partition("=")
    key = word if word in KEYS or word in groups else word.replace("-", "_")
    if key in KEYS or key in groups:
        value = value or next((one for one in after if "=" not in one and not one.startswith("-")), "VALUE")
        raise ConfigError(f"{argument}: keys are written without dashes; write {key}={value}")
    if word == "run" and "=" in argument:
        raise ConfigError(f"{argument}: to continue a run write resume={value}; to name a new one, name={value}")


def _explain_word(word: str, before: str, after: Sequence[str], groups: set[str]) -> str:
    value = next((one.lstrip("=") for one in after if one != "="), "")
    if word == "=" or word.startswith("="):
        if before and "=" not in before:
            return f"{before} {word}: write key=value without blanks"
        return f"{word}: there is no key; write key=value"
    if word in KEYS or word in groups:
        fix = f"write {word}={value}" if value and "=" not in value and not value.startswith("-") else "write key=value"
        return f"{word}: cannot be read as key=value; {fix}, without blanks around the ="
    fix = f"'{before} {word}'" if "=" in before else "key=value"
    return f"{word}: cannot be read as key=value; " + (
        f"if it belongs to the value before it, quote both: {fix}" if "=" in before else f"write {fix}"
    )


def _is_sweep(override: str, overrides: Sequence[str]) -> bool:
    """Whether a recipe makes a sweep of the command, which matters to several values alone, or to choice(...)."""
    if not any(mark in override for mark in ",(") or key_of(override.partition("=")[0]) is None:
        return False
    recipes = [one for one in overrides if one.startswith("experiment=")]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return bool(recipes) and "MULTIRUN" in str(compose("train", recipes, return_hydra_config=True).hydra.mode)
    except Exception:  # Hydra has many for a recipe that there is not, and raises them again later
        return False


def key_of(name: str) -> Key | None:
    """The key of this dotted name; None if there is none, or if it is one of Hydra's."""
    if name.startswith(boards.PREFIX) and boards.refused(name) is None:
        return boards.keys_of_board(name.removeprefix(boards.PREFIX).partition(".")[0]).get(name)
    return KEYS.get(name)


def as_typed(override: str, *, sweep: bool) -> str:
    """One override whose values Hydra reads as the type of its key wants; `sweep`: a comma stands between values."""
    name, equals, value = override.partition("=")
    key = key_of(name)
    if name == "hydra.sweep.dir":
        return override if QUOTED.fullmatch(value) or "${" in value else f"{name}={_text(value)}"
    if not equals or (key is None and not name.isidentifier()):
        return override
    if not sweep or name in OF_A_WHOLE_SWEEP:
        return f"{name}={_element(key, value)}"
    choice = CHOICE.fullmatch(value)
    parts = split(value if choice is None else choice[1])
    elements = [part if FUNCTION.fullmatch(part) else _element(key, part) for part in parts]
    if elements == parts:
        return override
    if choice is not None and len(parts) == 1:
        return f"{name}=choice({elements[0]})"
    return f"{name}={','.join(elements)}"  # within choice(...), Hydra drops the quotes


def split(values: str) -> list[str]:
    """The values of a sweep: at each comma that stands in no quotes, brackets or call of a function."""
    parts, rest = [], values
    while True:
        match = VALUE.match(rest)
        assert match is not None
        parts.append(match[0].strip())
        if match.end() == len(rest):
            return parts
        rest = rest[match.end() + 1 :]


def _element(key: Key | None, text: str) -> str:
    """One value; of no key: a choice of a group."""
    if key is None:
        return "none" if is_null(text) else text
    kinds, nullable = types_of(key.type)
    kind = kinds[0] if kinds else Any
    if QUOTED.fullmatch(text):
        return text
    if is_null(text) and nullable:
        return "null"
    if kind is str:
        return "null" if text.strip() == "null" else _text(text)
    if kind is int and not isinstance(_as_hydra_reads(text), int) and _is_scalar(text):
        try:
            return str(whole(text))
        except ValueError:
            return quoted(text)
    return text


def _is_scalar(text: str) -> bool:
    return text != "" and "," not in text and not text.strip().startswith(("[", "{", "${")) and not is_null(text)


def _text(text: str) -> str:
    """In quotes unless Hydra reads just this text without them."""
    return text if "${" not in text and _as_hydra_reads(text) == text else quoted(text)


def _as_hydra_reads(text: str) -> Any:
    """None for what it does not read as one value."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        return None
    return None if override.is_sweep_override() else override.value()


def quoted(text: str) -> str:
    """A text for Hydra's grammar, and no interpolation."""
    return QuotedString(literal(text), Quote.single).with_quotes()
