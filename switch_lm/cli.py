"""What may stand on the trainer's command line: nothing of Hydra that can name code to run, and no endless sweep."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException

from switch_lm.config import ConfigError
from switch_lm.paths import config_dir

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


def check(arguments: Sequence[str]) -> None:
    """ConfigError for the first argument that is refused; what Hydra itself refuses is left to it."""
    for argument in arguments:
        key = argument.partition("=")[0]
        if argument.startswith("-"):
            _require(key, FLAGS, "is not an option here")
        elif re.search(r"\bhydra\b", key):
            _require(key.lstrip("+~"), HYDRA_KEYS, "is not passed on to Hydra, since such keys can name code to run")
        elif argument.startswith("~"):
            raise ConfigError(f"{argument}: a key can not be removed; leave it out for its default")
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except HydraException:
        return
    for override in overrides:
        _require_choice(override)
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


def _require_choice(override: Override) -> None:
    """Hydra itself raises a bare ValueError for `model=null` and `=1`."""
    key, value = override.key_or_group, override.value()
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    if not key or (key in groups and not isinstance(value, (str, QuotedString, list, Sweep))):
        choose = f"choose one of its files, as {key}=NAME, or set one of its keys" if key else "write key=value"
        raise ConfigError(f"{override.input_line}: {key or 'nothing'} is not a key that takes a value; {choose}")


def _num_values(override: Override) -> float:
    """How many values a sweep goes through, known without going through them; 1 where it is no sweep."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep):
        if not value.step:
            raise ConfigError(f"{override.input_line}: a range with a step of 0 has no end; give another step")
        return max(1.0, math.ceil(((value.stop or 0) - (value.start or 0)) / value.step))
    return 1
