"""Imports go one way: entry points -> module -> model -> switch -> experts, routing; the table is the rule."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import switch_lm

PACKAGE = Path(switch_lm.__file__).parent
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}

# These import the standard library, each other and nothing else ...
PLAIN = {
    "architecture",
    "ledger",
    "pages.coloured_text",
    "pages.document",
    "pages.markdown",
    "rule",
    "schema",
    "settings",
}
# ... and these torch as well, so that they work in a notebook without Hydra or Lightning.
CORE = {
    "queueing",
    "routing",
    "dispatch",
    "experts",
    "switch",
    "attention",
    "model",
    "losses",
    "noise",
    "metrics",
    "router_health",
    "scoring",
    "tallies",
    "upcycle",
    "vocab",
}
ALLOWED = {name: (PLAIN, set[str]()) for name in PLAIN} | {name: (PLAIN | CORE, {"torch"}) for name in CORE}
ALLOWED["pages.templates"] = (PLAIN, {"jinja2"})

# Only these may import the package on the left; a folder counts as its name.
ONLY_IN = {
    "hydra": {"train", "launchers", "sweep", "cli"},
    "lightning": {
        "train",
        "training",
        "module",
        "data",
        "callbacks",
        "routing_pictures",
        "saving",
        "stopping",
        "watch",
    },
    "requests": {"corpus", "mirrors"},
}


def imports(source: str) -> Iterator[str]:
    """Dotted names that the source imports anywhere, in functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" if module == "switch_lm" else module for alias in node.names)


def breaches(name: str, source: str) -> list[str]:
    """The imports that module `name` may not have."""
    found = []
    for imported in sorted(set(imports(source))):
        package, _, inner = imported.partition(".")
        family = name.split(".")[0]
        if family not in ONLY_IN.get(package, {family}):
            found.append(imported)
        elif name in ALLOWED and package != "__future__":
            ours, others = ALLOWED[name]
            allowed = bool({inner, inner.split(".")[0]} & ours) if package == "switch_lm" else package in others
            if not allowed and package not in sys.stdlib_module_names:
                found.append(imported)
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    assert breaches(name, FILES[name].read_text(encoding="utf-8")) == []


def test_every_module_that_the_table_restricts_exists() -> None:
    assert sorted(ALLOWED.keys() - FILES.keys()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("routing", "import lightning"),
        ("model", "def f():\n    import hydra"),
        ("losses", "from switch_lm import module"),
        ("switch", "from switch_lm.train import main"),
        ("experts", "from . import train"),
        ("metrics", "import numpy as np"),
        ("rule", "import torch"),
        ("ledger", "import torch"),
        ("architecture", "from switch_lm.routing import Routing"),
        ("report", "from lightning.pytorch import Trainer"),
        ("module", "import hydra"),
        ("data", "import requests"),
    ],
)
def test_an_import_that_the_table_forbids_is_found(name: str, line: str) -> None:
    assert len(breaches(name, line)) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("train --help", 0),
        ("train --cfg job", 0),
        ("train --shell-completion install=bash", 0),
        ("train model.capacity_facter=1", 2),
        ("train model.num_experts=0", 2),
        ("train -m seed=range(0,1000000)", 2),
        ("report nowhere", 1),
        ("report --help", 0),
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: str, code: int, tmp_path: Path) -> None:
    name, *options = arguments.split()
    command = [sys.executable, "-X", "importtime", "-m", f"switch_lm.{name}", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code, done.stderr[-2000:]
    assert "argparse" in loaded  # so the list is not empty
    assert not loaded & {"torch", "lightning"}
