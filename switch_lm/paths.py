"""Where the configuration lies that is shipped with the code."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The absolute path of `configs/`: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
