"""Where the configuration lies that is shipped with the code."""

import os
import shutil
import sys
from pathlib import Path

from switch_lm.config.keys import ConfigError


def config_dir() -> Path:
    """The absolute path of `configs/`: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def expanded(path: str) -> str:
    """A path with the home folder that a leading `~` or `~user` means; ConfigError for a user that there is not."""
    whole = os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises for an unknown user
    if path.startswith("~") and whole == path:
        user = path.partition("/")[0]
        raise ConfigError(f"{path}: no user named {user[1:]} on this machine; for a folder of this name write ./{user}")
    return whole


def interpreter() -> str:
    """What to call this Python in a shell here: `python` where that is it, or else its path."""
    if (found := shutil.which("python")) is not None and Path(found).parent == Path(sys.executable).parent:
        return "python"  # not resolved: in a virtual environment it links to one that knows nothing of us
    return os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
