"""Imports point one way: a file at the top is a command, a folder is a layer, and a table says who may import whom."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import switch_lm

PACKAGE = Path(switch_lm.__file__).parent
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
FOLDERS = {name.split(".")[0] for name in FILES if "." in name}

# What a folder may import of ours beside itself. An entry is a folder or a single file. A file with a row of its own,
# the only one of its folder that loads torch, is not meant by the folder's name. The files at the top, which are the
# commands and the public names, may import anything; nothing imports them.
ALLOWED: dict[str, set[str]] = {
    "stats": set(),
    "pages": set(),
    "routers": {"config.families", "config.keys"},
    "model": {"config.families", "config.keys", "routers"},
    "config": {"routers.options", "optim.options", "model.config", "training.boards"},
    "optim": {"config"},
    "storage": {"config"},
    "storage.checkpoint": {"model", "routers.options"},
    "text": {"storage.files"},
    "measure": {"routers", "model", "config", "optim.options", "pages", "stats", "text"},
    "generation": {"routers", "model", "measure", "text", "storage", "storage.checkpoint", "pages"},
    "probe": {"routers", "model", "measure", "stats", "text"},
    "training": {
        "commandline.closed_pipe",
        "commandline.process",
        "commandline.signals",
        "routers",
        "model",
        "config",
        "optim",
        "storage",
        "storage.checkpoint",
        "text",
        "measure",
        "generation",
        "pages",
    },
    "reporting": {"config", "storage", "stats", "pages"},
    "sweep": {"config", "storage", "text", "training", "reporting", "commandline.closed_pipe", "commandline.signals"},
    "certificate": {
        "config.families",
        "routers",
        "model",
        "measure",
        "probe",
        "stats",
        "storage",
        "storage.checkpoint",
        "text",
        "pages",
    },
    "exporting": {"config.families", "model", "routers", "storage", "storage.checkpoint"},
    "inspection": {"routers", "model", "measure", "probe", "stats", "storage", "storage.checkpoint", "text", "pages"},
    "commandline.measuring": {
        "config",
        "measure",
        "model",
        "pages",
        "probe",
        "stats",
        "storage",
        "storage.checkpoint",
        "text",
    },
    "commandline": {"config", "storage", "storage.checkpoint", "text", "model", "training.process_state"},
}
# What may be imported only there.
ONLY_IN = {
    "transformers": {"exporting"},
    "safetensors": {"exporting", "storage"},
    "hydra": {"train", "check", "config", "sweep"},
    "lightning": {"training"},
    "requests": {"text"},
    "jinja2": {"pages"},
    "matplotlib": {"pages", "api"},  # which returns its figures
    "scipy": {"stats", "pages"},  # and for the lines of names in pictures
}


def imports(source: str) -> Iterator[str]:
    """Dotted names that the source imports anywhere: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            inside = module.split(".")[0] == "switch_lm"
            yield from (f"{module}.{alias.name}" if inside else module for alias in node.names)


def breaches(name: str, source: str) -> list[str]:
    """The imports that module `name` may not have."""
    folder, is_top = name.split(".")[0], "." not in name
    allowed = {folder} | ALLOWED.get(folder, set()) | ALLOWED.get(name, set())
    result = []
    for imported in sorted(set(imports(source))):
        package, _, inner = imported.partition(".")
        if package != "switch_lm":
            ok = package != "" and folder in ONLY_IN.get(package, {folder})  # not relative
        elif inner == "__version__":
            ok = True
        elif inner in FILES and "." not in inner:
            ok = name == "__init__"  # a command
        else:
            own_row = next((row for row in ALLOWED if "." in row and f"{inner}.".startswith(f"{row}.")), None)
            named = (
                allowed & {own_row} if own_row else {place for place in allowed if f"{inner}.".startswith(f"{place}.")}
            )
            ok = is_top or bool(named)
        if not ok:
            result.append(imported)
    return result


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    assert breaches(name, FILES[name].read_text(encoding="utf-8")) == []


def test_the_design_page_shows_this_table() -> None:
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/(\w*)(?:\.py)?` \|.*\| (.*) \|$", page, re.MULTILINE)
    shown = {".".join(filter(None, row[:2])): set(re.findall(r"`([\w./]+)`", row[2])) for row in rows}
    assert shown == {name: {place.replace(".", "/") for place in places} for name, places in ALLOWED.items()}


def test_every_folder_has_a_row_and_says_what_it_holds() -> None:
    assert {row.split(".")[0] for row in ALLOWED} == FOLDERS
    assert all(row in FILES for row in ALLOWED if "." in row)
    assert all(ast.get_docstring(ast.parse(FILES[f"{folder}.__init__"].read_text())) for folder in FOLDERS)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("routers.routing", "import lightning"),
        ("routers.routing", "from switch_lm.model.config import ModelConfig"),
        ("routers.switch", "from switch_lm.config.schema import Config"),
        ("config.families", "from switch_lm.routers.switch import SwitchRouter"),
        ("config.schema", "from switch_lm.optim.muon import BatchedMuon"),
        ("measure.ledger", "from switch_lm.optim.groups import build_optimizer"),
        ("model.transformer", "def f():\n    import hydra"),
        ("model.losses", "from switch_lm.training import module"),
        ("model.switch", "from switch_lm.train import main"),
        ("model.experts", "from . import train"),
        ("config.schema", "from switch_lm.routers.routing import Routing"),
        ("stats.intervals", "from switch_lm.pages.document import Cell"),
        ("storage.runs", "from switch_lm.model.transformer import SwitchLM"),
        ("reporting.write", "def f():\n    from switch_lm.training.run import Training"),
        ("certificate.certify", "from switch_lm.inspection import drops"),
        ("training.data", "import requests"),
        ("training.module", "from switch_lm.probe import replay"),
        ("sweep.jobs", "from switch_lm.train import main"),
    ],
)
def test_an_import_that_the_table_forbids_is_noticed(name: str, line: str) -> None:
    assert name in FILES
    assert len(breaches(name, line)) == 1


def test_families_and_options_load_no_torch() -> None:
    """Each is imported by name in a real process, which then lists what it has loaded."""
    modules = [name for name in FILES if name.endswith(".options")] + [
        "config.families",
        "config.schema",
        "model.config",
    ]
    assert {"routers.options", "optim.options"} <= set(modules)
    code = f"import sys, {', '.join(f'switch_lm.{name}' for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert {f"switch_lm.{name}" for name in modules} <= loaded
    assert not loaded & {"torch", "lightning", "switch_lm.routers.switch", "switch_lm.optim.groups"}


QUERY = {"COMP_LINE": "switch-lm-train model=", "COMP_POINT": "22"}  # what bash asks with


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--help"], 0),
        (["train", "--cfg", "job"], 0),
        (["train", "-sc", "query=bash"], 0),
        (["train", "-sc", "install=bash"], 0),
        (["train", "model.capacity_facter=1"], 2),
        (["train", "model.capacity_factor=-1"], 2),
        (["train", "router=base"], 2),
        (["train", "router.top_k=2"], 2),
        (["train", "model.top_k=2"], 2),
        (["train", "-m", "seed=range(0,1000000)"], 2),
        (["train", "-m", "model.d_modl=1,2"], 2),
        (["train", "-m", "seed=0,1", "trainer.budget=5m"], 2),
        (["train", "resume=auto", "trainer.budget=5m"], 2),
        (["generate", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["check", "--help"], 0),
        (["check", "model.capacity_facter=1"], 2),
        (["inspect", "--help"], 0),
        (["export", "--help"], 0),
        (["corpus", "--help"], 0),
        (["dashboard", "--help"], 0),
        (["report", "--help"], 0),
        (["report", "nowhere"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    """`sys.modules` of a real process: what `-X importtime` lists."""
    command = [sys.executable, "-X", "importtime", "-m", f"switch_lm.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | QUERY, capture_output=True, text=True, timeout=120, check=False
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code, done.stderr[-2000:]
    assert "switch_lm" in loaded
    assert not loaded & {"torch", "lightning"}
    assert list(tmp_path.iterdir()) == []
