"""The values that a sweep goes through: equal ones once, and all checked before the first job. No torch."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config.arguments import as_typed, key_of
from switch_lm.config.keys import ConfigError
from switch_lm.config.overrides import explain
from switch_lm.config.reading import read
from switch_lm.config.rules import not_in_sweep, resolve, resolved
from switch_lm.config.schema import Config
from switch_lm.storage.runs import RunError, find_run
from switch_lm.text.splits import require_text

MOST_COMBINATIONS = 500  # up to which every one is checked; of more, each value once
MOST_COMPOSED = 20  # Hydra takes a tenth of a second for each choice of groups
MOST_LINES = 20


class Value(NamedTuple):
    """One value of a key: as it stands in a job's overrides, and what Hydra reads there."""

    text: str
    value: Any


@dataclass(frozen=True)
class Grid:
    """What a sweep varies."""

    fixed: list[str]  # the overrides that all jobs share
    varied: dict[str, list[Value] | None]  # each value of a key once; None: a search chooses from a range
    changed: list[str]  # the overrides that were given with repeated values, with each once
    notes: list[str]  # what to say of these

    @classmethod
    def of(cls, config: DictConfig) -> "Grid":
        """Of a sweep's configuration: the overrides of its experiment first, the last of a key wins."""
        params = config.hydra.sweeper.get("params") or {}
        lines = [as_typed(f"{key}={value}", sweep=True) for key, value in params.items()]
        overrides = {o.get_key_element(): o for o in parsed(lines + as_given(config.hydra.overrides.task))}
        grid = cls([str(o.input_line) for o in overrides.values() if not o.is_sweep_override()], {}, [], [])
        for key, override in overrides.items():
            if override.is_discrete_sweep():
                grid._add(key, override)
            elif override.is_sweep_override():
                grid.varied[key] = None
        return grid

    def _add(self, key: str, override: Override) -> None:
        given, same = values_of(override), dict[str, list[Value]]()
        for one in given:
            same.setdefault(_identity(key, one.value), []).append(one)
        self.varied[key] = [values[0] for values in same.values()]
        repeated = [", ".join(one.text for one in values) for values in same.values() if len(values) > 1]
        self.notes.extend(f"{key}: {texts} are equal: run once" for texts in repeated)
        if repeated or any(isinstance(one, RangeSweep) for one in getattr(override.value(), "list", ())):
            self.changed.append(f"{key}={','.join(values[0].text for values in same.values())}")

    def jobs(self) -> list[dict[str, Any]] | None:
        """What varies in each job, in order; None if the sweeper chooses as it goes."""
        if None in self.varied.values():
            return None
        values = [[one.value for one in values or ()] for values in self.varied.values()]
        return [dict(zip(self.varied, map(_plain_value, job), strict=True)) for job in itertools.product(*values)]


def as_given(overrides: Any) -> list[str]:
    """The overrides in a configuration, where OmegaConf would take `${` for an interpolation."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain]


def parsed(lines: Sequence[str]) -> list[Override]:
    """Overrides as Hydra's sweepers read them."""
    hydra = GlobalHydra.instance()
    return OverridesParser.create(
        config_loader=hydra.config_loader() if hydra.is_initialized() else None
    ).parse_overrides(list(lines))


def values_of(override: Override) -> list[Value]:
    """What a sweep goes through; a range among other values counts as its numbers."""
    values: list[Value] = []
    for element in override.sweep_iterator():
        if isinstance(element, RangeSweep):
            values += [Value(str(number), number) for number in element.range()]
            continue
        text = str(Transformer.str(element))
        if isinstance(element, list | dict | str):
            inner = parsed([f"{override.get_key_element()}={text}"])[0]
            values += values_of(inner) if inner.is_sweep_override() else [Value(text, inner.value())]
        else:
            values.append(Value(text, element.text if isinstance(element, QuotedString) else element))
    return values


def _plain_value(value: object) -> object:
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)


def _identity(name: str, value: Any) -> str:
    """Equal for values that are the same to the type of their key."""
    with suppress(ConfigError):  # it is refused later
        value = value if (key := key_of(name)) is None else read(name, value, key.type, path=key.path)
    return json.dumps(value, default=str)


def as_key(values: Mapping[str, Any]) -> str:
    """The same for the same values of a job, in any order."""
    return json.dumps({name: _plain_value(value) for name, value in values.items()}, sort_keys=True)


def require_valid(config: DictConfig, grid: Grid) -> dict[str, Config]:
    """Checks the jobs of a sweep: all of them up to MOST_COMBINATIONS, else each value once. Returns what it checked.

    ConfigError with each rule that is broken, or TextError for a text that cannot be trained on.
    """
    listed = {key: values for key, values in grid.varied.items() if values}
    groups = {key: values for key, values in listed.items() if key_of(key) is None}
    keys = {key: values for key, values in listed.items() if key not in groups}
    wrong, configs = dict[str, None](), dict[str, Config]()
    choices = list(_combined(groups, most=MOST_COMPOSED))
    for choice in choices:
        try:
            base = _plain(config, grid.fixed, choice)
        except ConfigError as error:
            wrong |= dict.fromkeys(str(error).splitlines())
            continue
        for values in _combined(keys, most=MOST_COMBINATIONS // len(choices)):
            try:
                one = _resolved(_with(base, values))
                configs[as_key({name: given.value for name, given in (choice | values).items()})] = one
                wrong |= dict.fromkeys(filter(None, [not_in_sweep(one)]))
            except ConfigError as error:
                wrong |= dict.fromkeys(str(error).splitlines())
    if wrong:
        more = [f"... and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
        raise ConfigError("\n".join([*list(wrong)[:MOST_LINES], *more]))
    for wanted in {(one.data.path, one.data.text, one.data.split, one.data.hold_out) for one in configs.values()}:
        require_text(*wanted)
    for run, outputs in {(one.init_from, one.outputs) for one in configs.values() if one.init_from}:
        try:
            find_run(run, Path(outputs))
        except RunError as error:
            raise ConfigError(f"init_from={run}: {error}") from error
    return configs


def _resolved(plain: dict[str, Any]) -> Config:
    return resolve(OmegaConf.create(plain)) if "${" in json.dumps(plain, default=str) else resolved(plain)


def _combined(varied: Mapping[str, Sequence[Value]], *, most: int) -> Iterator[dict[str, Value]]:
    """Every combination, if there are no more than `most`; else each value once, with the first of the other keys."""
    if math.prod(len(values) for values in varied.values()) <= most:
        yield from (dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values()))
        return
    first = {key: values[0] for key, values in varied.items()}
    yield first
    yield from (first | {key: value} for key, values in varied.items() for value in values[1:])


def _plain(config: DictConfig, fixed: Sequence[str], choice: Mapping[str, Value]) -> dict[str, Any]:
    """The configuration with these choices of groups, not interpolated yet."""
    if choice:
        try:
            config = compose("train", [*fixed, *(f"{key}={one.text}" for key, one in choice.items())])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(explain(error)) from error
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in plain.items() if key != "hydra"}


def _with(base: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """A copy with other values. ConfigError for a key that is not there."""
    plain = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for name, one in values.items():
        *path, last = name.split(".")
        place = plain
        for part in path:
            place[part] = dict(place[part]) if isinstance(place.get(part), dict) else {}
            place = place[part]
        if last not in place:
            raise ConfigError(explain(HydraException(f"Could not override '{name}'.")))
        place[last] = one.value
    return plain
