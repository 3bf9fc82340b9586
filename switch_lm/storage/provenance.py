"""Which code produced a result: the commit and the versions."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from switch_lm import __version__


def versions() -> dict[str, str]:
    """Of Python, this package and what it computes with."""
    others = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"python": platform.python_version(), "switch_lm": __version__} | others


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "-dirty" if it was changed; None without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
