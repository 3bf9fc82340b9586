"""Names of folders: of a run or a job what varies, such as cap0.5_seed1. What a path cannot hold is replaced."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from switch_lm.config.rules import show
from switch_lm.config.schema import KEYS, changes_result

MAX_NAME = 80
SHORT = 4  # letters of a key
UNNAMED = ("logger", "plugins", "trainer.device", "trainer.compile")  # say how a run is watched, found or computed


def run_name(overrides: Mapping[str, Any]) -> str:
    """Of a run with these overrides, such as short_cap0.5, from those that vary what is trained; "" if none does."""
    return short_name({key: value for key, value in overrides.items() if key not in UNNAMED and changes_result(key)})


def short_name(overrides: Mapping[str, Any]) -> str:
    """Of a job, such as cap0.5_seed1 or switch_1.0_seed0, as TensorBoard shows it; "" without overrides.

    A hash is added where something was replaced, so that two jobs stay two.
    """
    return as_name([_short(key, show(value)) for key, value in overrides.items()], between="_", held="._+-")


def as_name(parts: Sequence[str], *, between: str = ",", held: str = "._=,+-") -> str:
    """Of at most `MAX_NAME` characters: letters, digits and those of `held`. Different parts have different names."""
    whole = between.join(part.removeprefix("model.") for part in parts if part and part != "None")
    name = re.sub(f"[^A-Za-z0-9{re.escape(held)}]", "_", whole).lstrip(".-") or "job" * bool(whole)
    if len(name) <= MAX_NAME and name == whole:
        return name
    return f"{name[: MAX_NAME - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def numbered(path: Path) -> Iterator[Path]:
    """The path, then those that follow it where it is taken: cap0.5, cap0.5-2, cap0.5-3, ..."""
    return (path.with_name(path.name + f"-{number}" * (number > 1)) for number in itertools.count(1))


def _short(key: str, value: str) -> str:
    """A group's choice stands alone; of a key whose first letters others have, too, the whole last part is there."""
    if value.startswith("["):
        value = value.strip("[]").replace(",", "+") or "none"
    last = key.rpartition(".")[2]
    if key not in KEYS:
        return value if "." not in key else f"{last}{value}"
    alike = [other for other in KEYS if other.rpartition(".")[2].startswith(last[:SHORT])]
    return f"{KEYS[key].short or (last[:SHORT].strip('_') if alike == [key] else last)}{value}"
