"""Plugins: modules of others that add routers, boards and optimizers, and who may name them. Loads no torch itself.

A plugin is code, so only the person who runs a command names one: by installing it, with an entry point, or in
SWITCH_LM_PLUGINS. A name that is read from a file is text for a message and is never imported. Importing a plugin
declares what it adds (see `families.register`); the folder `configs/` beside its module holds its YAML.
"""

import importlib
import os
import re
import shlex
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path

from switch_lm.config.keys import ConfigError
from switch_lm.config.paths import config_dir, interpreter
from switch_lm.config.schema import KEYS, every_key

VARIABLE = "SWITCH_LM_PLUGINS"
ENTRY_POINTS = ("switch_lm.routers", "switch_lm.boards", "switch_lm.optimizers")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
NOUNS = {"router": "router", "optim": "optimizer", "logger": "board"}  # what a group of configs/ holds
MOST_NAMES, LONGEST = 8, 80  # of what a file says, in a message
NOT_THEIRS = ("<frozen", f"{Path(importlib.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")


class PluginError(ConfigError):
    """A plugin cannot be loaded, or a run needs one that is not loaded; the message says which, and what to set."""


@dataclass(frozen=True)
class _Plugin:
    """A module to import, and what messages say of it."""

    module: str
    load: Callable[[], object]
    source: str  # who named it
    without: str  # how to run the command without it


def command_line(*words: str) -> str:
    """What to type into a shell here for `python -m WORDS`: one line, this Python, these plugins."""
    plugins = [f"{VARIABLE}={shlex.quote(names)}"] if (names := os.environ.get(VARIABLE)) else []
    return " ".join([*plugins, *map(shlex.quote, [interpreter(), "-m", *words])])


def without_keys(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """The words of a command line that set none of these keys."""
    return [word for word in words if word.partition("=")[0].lstrip("+~") not in keys]


def load_plugins() -> tuple[str, ...]:
    """Imports the modules that SWITCH_LM_PLUGINS and installed entry points name, and returns their names.

    Each is imported once per process. PluginError if one cannot be imported, or has a YAML file that exists already.
    """
    return tuple(_loaded(os.environ.get(VARIABLE, "")))


def plugin_configs() -> dict[str, Path]:
    """The folder `configs/` of each plugin that has one, by the plugin's name."""
    return {name: folder for name, folder in _loaded(os.environ.get(VARIABLE, "")).items() if folder is not None}


@cache
def _loaded(variable: str) -> dict[str, Path | None]:
    """The plugins' names and their `configs/`, for a value of SWITCH_LM_PLUGINS."""
    plugins: dict[str, Path | None] = {}
    for plugin in [*_named(variable), *_installed()]:
        try:
            plugin.load()
        except (Exception, SystemExit) as error:  # whatever the module does
            raise PluginError(f"{plugin.source}: {_reason(plugin.module, error)}; or {plugin.without}") from error
        if plugin.module not in plugins:
            plugins[plugin.module] = _configs(plugin, plugins.values())
    if plugins:
        KEYS.update(every_key())
    return plugins


def _named(variable: str) -> Iterator[_Plugin]:
    for name in dict.fromkeys(filter(None, map(str.strip, variable.split(",")))):
        source = f"{VARIABLE}={_printable(name)}"
        if MODULE.fullmatch(name) is None:
            rule = "it must hold names of modules with commas between them, and no paths"
            raise PluginError(f"{source}: {rule}; for example {VARIABLE}=my_router,my_package.optimizers")
        yield _Plugin(name, partial(importlib.import_module, name), source, "leave it out of the variable")


def _installed() -> Iterator[_Plugin]:
    installed = entry_points()  # read once: it looks at every package
    for entry in [entry for group in ENTRY_POINTS for entry in installed.select(group=group)]:
        package = entry.dist.name if entry.dist is not None else "?"
        source = f"the installed package {package} ({entry.group}: {entry.name} = {entry.value})"
        yield _Plugin(entry.module, entry.load, source, f"remove it: pip uninstall {package}")


def _reason(module: str, error: BaseException) -> str:
    """What went wrong at importing a plugin, with its own file and line, and the fix."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name}; install it, or add its folder to PYTHONPATH"
    message = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}; correct the file"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    if not theirs:
        return f"{what}; correct the plugin"
    first = Path(theirs[0].filename)  # a package's own files, or the one file of a module
    own = [f for f in theirs if first.name == "__init__.py" and Path(f.filename).is_relative_to(first.parent)]
    place = (own or [f for f in theirs if f.filename == str(first)])[-1]
    return f"{place.filename}, line {place.lineno}: {what}; correct the file"


def _configs(plugin: _Plugin, others: Iterable[Path | None]) -> Path | None:
    """The folder of a plugin's YAML. PluginError if one of its files exists already: Hydra would read only one."""
    module = importlib.import_module(plugin.module)
    places = getattr(module, "__path__", None) or [Path(str(getattr(module, "__file__", ""))).parent]
    folder = next((path for place in places if (path := Path(place).resolve() / "configs").is_dir()), None)
    known = [config_dir(), *filter(None, others)]
    if folder is None or folder in known:  # a module at the top of this checkout has its YAML in ours
        return None
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*.yaml")):
        if hidden := next((place / file for place in known if (place / file).exists()), None):
            rule = f"{hidden} has this name already; give the file another name"
            raise PluginError(f"{plugin.source}: {folder / file}: {rule}, or {plugin.without}")
    return folder


def not_loaded(where: str, group: str, name: object, plugins: object) -> PluginError:
    """For a run whose router or optimizer is not known here. `name` and `plugins` are what its file states."""
    return PluginError(f"{where}: there is no {NOUNS[group]} {_printable(name)} here; {how_to_name(plugins)}")


def how_to_name(plugins: object = None) -> str:
    """How to load the plugin that something needs. `plugins`: the names in a run's file, if there is one."""
    listed = plugins if isinstance(plugins, list) else []
    names = [one for one in listed if isinstance(one, str) and len(one) <= LONGEST and MODULE.fullmatch(one)]
    if not names:
        return f"name the plugin that has it: {VARIABLE}=MODULE"
    return f"if you trust its code, name the plugin that the run used: {VARIABLE}={','.join(names[:MOST_NAMES])}"


def _printable(text: object) -> str:
    """Text of any origin, safe and short in a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))[:LONGEST]
