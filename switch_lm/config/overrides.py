"""The trainer's command line: what may stand on it (nothing that can name code to run, no endless sweep), and what it
means.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from switch_lm.config.paths import config_dir
from switch_lm.config.rules import ConfigError, resolve, unknown_key
from switch_lm.config.schema import Config

# Hydra's other flags read configurations from elsewhere, or a pickle, both of which can name code.
FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--multirun", "-m",
    "--run", "-r", "--shell-completion", "-sc", "--info", "-i",
)  # fmt: skip
# Of Hydra's own keys those that choose a launcher or a search and size it; others hold classes or shell commands.
HYDRA_KEYS = (
    "hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra.sweep.dir", "hydra.verbose",
    *(f"hydra.launcher.{key}" for key in (
        "n_jobs", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min", "array_parallelism", "partition", "qos",
        "account", "constraint", "gres", "max_num_timeout",
    )),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "n_jobs", "max_batch_size", "study_name", "sampler.seed")),
)  # fmt: skip
MOST_JOBS = 10_000
PLAIN = re.compile(r"-?[A-Za-z0-9_][A-Za-z0-9_.:+-]*")  # neither a path nor a line of a script


def check(arguments: Sequence[str]) -> None:
    """ConfigError for the first argument that is refused; what Hydra itself refuses is left to it."""
    for argument in arguments:
        key = argument.partition("=")[0]
        if argument.startswith("-"):
            _require(key, FLAGS, "is not an option here")
        elif re.search(r"\bhydra\b", key):
            _require(key, HYDRA_KEYS, "is not passed on to Hydra, since such keys can name code to run")
        elif argument.startswith("~"):
            raise ConfigError(f"{argument}: a key can not be removed; leave it out for its default")
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except HydraException:
        return
    for override in overrides:
        _require_plain(override)
    sizes = {str(override.input_line): _num_values(override) for override in overrides}
    if (jobs := math.prod(sizes.values())) > MOST_JOBS:
        largest = max(sizes, key=lambda line: sizes[line])
        raise ConfigError(
            f"{largest}: this makes a sweep of {jobs:,} jobs and more; it may have {MOST_JOBS:,}: narrow the range"
        )


def _require(key: str, known: Sequence[str], refusal: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        raise ConfigError(f"{key} {refusal}; {'did you mean' if near else 'there are'} {', '.join(near or known)}?")


def _require_plain(override: Override) -> None:
    """A group's choice is the name of one of its files: Hydra would follow a path to any other, with code in it.

    Hydra itself raises a bare ValueError for `model=null` and `=1`.
    """
    key, line = str(override.key_or_group), " ".join(str(override.input_line).split())
    if not key:
        raise ConfigError(f"{line}: there is no key; write key=value")
    if override.package is not None or ("/" in key and key not in HYDRA_KEYS):
        raise ConfigError(f"{line}: {key} is not a key; keys are words with dots between them, as model.d_model")
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    of_group, of_launcher = key in groups or "/" in key, key.startswith(("hydra.launcher.", "hydra.sweeper."))
    if of_group or of_launcher:
        for value in _leaves(override.value()):
            if (of_group and not isinstance(value, str)) or PLAIN.fullmatch(str(value)) is None:
                fix = (
                    f"choose one of its files, as {key}=NAME, or set one of its keys"
                    if of_group
                    else "use a plain word"
                )
                raise ConfigError(f"{line}: no value for {key}; {fix}")


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
    if str(override.key_or_group) == "hydra.sweeper.n_trials" and isinstance(value, int):
        return value
    if isinstance(value, RangeSweep):
        bounds = (value.start or 0, value.stop or 0, value.step)
        if not value.step or not all(math.isfinite(bound) for bound in bounds):
            raise ConfigError(
                f"{override.input_line}: this range has no end; give finite bounds and a step other than 0"
            )
        return max(1.0, math.ceil(((value.stop or 0) - (value.start or 0)) / value.step))
    return 1


def explain(error: Exception) -> str:
    """What Hydra found wrong with the overrides, in one line with the fix."""
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match[1])
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if match := re.search(r"Could not find '([^']+)/([^']*)'", text):
        choices = [line for line in lines[1:] if "vailable options" not in line and ":" not in line]
        return f"{match[1]}={match[2]}: no such choice; choose one of {', '.join(choices)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: can not be read as key=value ({lines[0]}); quote special characters: 'key=\"a b\"'"
    return " ".join(lines[:4])


def composed(overrides: Sequence[str]) -> Config:
    """The configuration of `python -m switch_lm.train OVERRIDES`; ConfigError for what can not be used."""
    check(overrides)
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error)) from error
    return resolve(cfg)
