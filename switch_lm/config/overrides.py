"""The trainer's command line: what may stand on it, and what it means. Hydra's own keys and flags are left to Hydra."""

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException

from switch_lm import __version__
from switch_lm.config import arguments as arguments_of
from switch_lm.config import boards
from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError, keys_of
from switch_lm.config.paths import config_dir
from switch_lm.config.plugins import NOUNS, how_to_name, load_plugins, plugin_configs
from switch_lm.config.rules import OLD_CHOICES, not_of, resolve, unknown_key
from switch_lm.config.schema import KEYS, Config

MOST_JOBS = 10_000
CHOICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # the name of a file in a group, and no path
BASE = "base"  # the file of a group that holds what its choices share


class PluginConfigs(SearchPathPlugin):
    """Lets Hydra find the YAML of our plugins, on the command line and at completion; a worker gets the whole path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in plugin_configs().items():
            search_path.append(provider=name, path=str(folder))


def prepared(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra, with the values as they were typed; ConfigError for what is no override or flag.

    `--version` ends here: Hydra would state its own.
    """
    if "--version" in arguments:
        print(f"switch_lm {__version__}")
        raise SystemExit
    load_plugins()
    return arguments_of.prepared(arguments, groups=_groups())


def check(arguments: Sequence[str]) -> None:
    """Loads the plugins; ConfigError for the first argument that is refused. What Hydra refuses is left to it."""
    load_plugins()
    Plugins.instance().register(PluginConfigs)
    if any(argument.startswith(("-sc", "--shell")) for argument in arguments):
        return  # install=bash and the like, for shell completion
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if argument.startswith(("+", "~")) and re.match(r"hydra\b", key) is None:
            raise ConfigError(_not_added(argument, key))
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except HydraException:
        return
    for override in overrides:
        _require_key_and_choices(override)
    keys = {str(override.key_or_group): None for override in overrides if not _is_of_hydra(override)}
    if unknown := [line for key in keys if (line := _unknown(key)) is not None]:
        raise ConfigError("\n".join(unknown))
    _require_keys_of_the_families(overrides)
    sizes = {str(override.input_line): _num_values(override) for override in overrides}
    trials = {str(o.input_line): o.value() for o in overrides if str(o.key_or_group) == "hydra.sweeper.n_trials"}
    sizes = {line: size for line, size in trials.items() if isinstance(size, int) and size > 0} or sizes  # a search
    if (jobs := math.prod(sizes.values())) > MOST_JOBS:
        largest = max(sizes, key=lambda line: sizes[line])
        raise ConfigError(
            f"{largest}: this makes a sweep of {jobs:,} jobs or more; the most is {MOST_JOBS:,}: narrow the range"
        )


def _require_keys_of_the_families(overrides: Sequence[Override]) -> None:
    """Each router and optimizer that the command line names has all the keys that it sets."""
    names = {str(override.key_or_group): _leaves(override.value()) for override in overrides}
    for group in FAMILIES:
        if f"{group}.name" in names:
            raise ConfigError(f"{group}.name: choose it, with the options of its own, by {group}=NAME")
        for override in overrides:
            key = str(override.key_or_group).removeprefix(f"{group}.")
            for name in names.get(group, []) if key != str(override.key_or_group) else []:
                if name in FAMILIES[group] and (message := not_of(group, name, key)) is not None:
                    raise ConfigError(message)


def _unknown(key: str) -> str | None:
    """Why there is no such key; None if there is."""
    if key == boards.PREFIX.rstrip("."):
        return f"{key}: choose the boards with logger=NAME or logger=[A,B]"
    if key.startswith(boards.PREFIX):
        return boards.refused(key)
    return None if key in KEYS or key in _groups() else unknown_key(key)


def _not_added(argument: str, key: str) -> str:
    if argument.startswith("~"):
        return f"{argument}: a key cannot be removed; leave it out for its default"
    if key in KEYS or key in _groups():
        return f"{argument}: the key exists already; write {argument.lstrip('+')}"
    return unknown_key(key)


def _groups() -> set[str]:
    folders = [config_dir(), *plugin_configs().values()]
    return {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}


def _require_key_and_choices(override: Override) -> None:
    """A group's choice is the name of one of its files: Hydra would follow a path to any other.

    Hydra itself raises a bare ValueError for `model=null` and `=1`.
    """
    key, line = str(override.key_or_group), " ".join(str(override.input_line).split())
    if not key:
        raise ConfigError(f"{line}: there is no key; write key=value")
    if not _is_of_hydra(override) and (override.package is not None or "/" in key):
        raise ConfigError(f"{line}: {key} is not a key; keys are words with dots between them, such as model.d_model")
    if key not in _groups() and "/" not in key:
        return
    for value in _leaves(override.value()):
        if not isinstance(value, str) or CHOICE.fullmatch(value) is None:
            raise ConfigError(f"{line}: not a choice of {key}; name one of its files: {key}=NAME")
        if (now := OLD_CHOICES.get(choice := f"{key}={value}")) is not None:
            raise ConfigError(f"{choice}: {now}")
        if value == BASE:
            others = ", ".join(sorted(path.stem for path in (config_dir() / key).glob("*.yaml") if path.stem != BASE))
            raise ConfigError(f"{key}={BASE}: it only holds the keys that all of them have; choose one of {others}")


def _is_of_hydra(override: Override) -> bool:
    return re.match(r"hydra\b", str(override.key_or_group)) is not None


def _leaves(value: Any) -> list[Any]:
    """The values in lists and sweeps, without quotes."""
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value.text if isinstance(value, QuotedString) else value]


def _num_values(override: Override) -> float:
    """How many values a sweep goes through, known without going through them; 1 where it is no sweep."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep):
        bounds = (value.start or 0, value.stop or 0, value.step)
        if not value.step or not all(math.isfinite(bound) for bound in bounds):
            raise ConfigError(
                f"{override.input_line}: this range has no end; give finite bounds and a step other than 0"
            )
        return max(1.0, math.ceil(((value.stop or 0) - (value.start or 0)) / value.step))
    return 1


def explain(error: Exception, plugins: object = None) -> str:
    """What Hydra found wrong with the overrides, in one line with the fix.

    `plugins`: those that the run to be resumed names in its file.
    """
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if match := re.search(r"Could not override '(logger\.boards\.([^.']+)[^']*)'", text):
        return f"{match[1]}: the board {match[2]} is not chosen; add logger={match[2]}, or name it in logger=[...]"
    if (match := re.search(r"Could not override '(\w+)\.(\w+)'", text)) and match[1] in FAMILIES:  # only others have it
        having = [f"{match[1]}={name}" for name, one in FAMILIES[match[1]].items() if match[2] in keys_of(one.options)]
        return f"{match[1]}.{match[2]}: the chosen {match[1]} has no such key; choose {' or '.join(having)}"
    if match := re.search(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n| requires)", text, re.DOTALL
    ):
        return f"{match[1]}: several values make a sweep; add -m to the command, or give one value"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if match := re.search(r"Could not find '([^']+)/([^']*)'", text):
        choices = [line for line in lines[1:] if "vailable options" not in line and ":" not in line and line != BASE]
        plugin = f"; or {how_to_name(plugins)}" if match[1] in NOUNS else ""
        return f"{match[1]}={match[2]}: no such choice; choose one of {', '.join(choices)}{plugin}"
    if match := re.search(r"Could not load '([^']+)/([^']*)'", text):  # one of several choices
        return f"{match[1]}={match[2]}: no such choice; name one of the files of {match[1]}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value ({lines[0]}); quote special characters: 'key=\"a b\"'"
    return " ".join(lines[:4])


def value_of(key: str, arguments: Sequence[str]) -> str:
    """What the last `key=VALUE` of a command line gives a key, as text; empty if there is none."""
    return next((a.partition("=")[2] for a in reversed(arguments) if a.startswith(f"{key}=")), "")


def composed(overrides: Sequence[str]) -> Config:
    """The configuration of `python -m switch_lm.train OVERRIDES`; ConfigError for what cannot be used."""
    plugins = deepcopy(Plugins.instance())
    before = Singleton.get_state()
    before["instances"][Plugins] = plugins  # without them set_state would make Hydra's own classes again
    GlobalHydra.instance().clear()  # a caller may use Hydra, too
    try:
        arguments = prepared(overrides)
        check(arguments)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train", arguments)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error)) from error
    finally:
        Singleton.set_state(before)
    return resolve(cfg)
