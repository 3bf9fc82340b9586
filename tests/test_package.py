"""The wheel holds all that a run needs and works from any folder; building it leaves nothing in the checkout."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from switch_lm.config.paths import config_dir

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHADOWS = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}  # what could put another switch_lm before the wheel's
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(*command: str | Path, folder: Path) -> str:
    """What the command prints; an AssertionError with its complaint if it fails."""
    env = {key: value for key, value in os.environ.items() if key not in SHADOWS}
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, source)
    for name in ("switch_lm", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", target, source, folder=target)
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new virtual environment: the wheel, and by a .pth file the packages that run these tests.

    Python reads no .pth file of a folder that a .pth file names, so an editable install of the checkout stays unseen.
    """
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place, folder=place)
    run(*PIP, "--python", place / "bin" / "python", "install", "--no-index", "--no-deps", wheel, folder=place)
    [site_packages] = place.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "tests.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
    return place / "bin"


def test_the_wheel_holds_every_module_text_and_config_of_the_checkout(wheel: Path) -> None:
    package, configs = ROOT / "switch_lm", ROOT / "configs"
    code = [file.relative_to(ROOT) for kind in ("*.py", "*.txt", "*.jinja", "*.js") for file in package.rglob(kind)]
    values = ["switch_lm" / file.relative_to(ROOT) for file in configs.rglob("*.yaml")]
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {path.as_posix() for path in [*code, *values]}
    assert values


def test_the_installed_package_is_the_wheels_and_so_are_its_configs(bin_dir: Path, tmp_path: Path) -> None:
    script = "import switch_lm, switch_lm.config.paths as p; print(switch_lm.__file__, p.config_dir(), sep='\\n')"
    module, configs = run(bin_dir / "python", "-c", script, folder=tmp_path).splitlines()
    assert Path(module).is_relative_to(bin_dir.parent)
    assert Path(configs) == Path(module).parent / "configs"


def test_a_checkout_uses_the_configs_beside_its_package() -> None:
    assert config_dir() == ROOT / "configs"


@pytest.mark.parametrize("command", [["python", "-m", "switch_lm.train"], ["switch-lm-train"]], ids=" ".join)
def test_from_an_empty_folder_the_wheel_composes_its_config_and_leaves_nothing(
    command: list[str], bin_dir: Path, tmp_path: Path
) -> None:
    output = run(bin_dir / command[0], *command[1:], "--cfg", "job", folder=tmp_path)
    assert "capacity_factor" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
def test_every_command_of_the_wheel_explains_itself(name: str, bin_dir: Path, tmp_path: Path) -> None:
    assert run(bin_dir / name, "--help", folder=tmp_path).strip()
    assert list(tmp_path.iterdir()) == []


PYTHON = """#!/bin/sh
for last; do :; done
case "$*" in *"-m venv"*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
*"-m pip"*) echo "$PYTHONHOME$PIP_USER$PIP_TARGET$PIP_NO_DEPS" "$@" >>"$(dirname "$0")/asked" ;; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("venv", ["my env", "it's $HOME #1 %", "~/env"])
def test_set_up_fills_any_venv_once_for_each_change_of_versions_whatever_pip_is_told(venv: str, tmp_path: Path) -> None:
    place, told = tmp_path / "o'clock $5 (copy)", ("PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_NO_DEPS")
    shutil.copytree(ROOT, place, ignore=lambda _, names: {*names} - {"Makefile", "pyproject.toml", "constraints.txt"})
    (place / "python").write_text(PYTHON)
    (place / "python").chmod(0o755)
    env = os.environ | dict.fromkeys(told, "1") | {"VENV": venv, "HOME": str(tmp_path), "PYTHON": f"{place}/python"}
    for jobs in (2, 2, 4):  # the last after a change
        os.utime(place / "constraints.txt", (jobs // 4 * 2**32,) * 2)
        subprocess.run(["make", "setup"], cwd=place, env=env, capture_output=True, check=True, timeout=30)
        asked = (place / venv.replace("~", str(tmp_path)) / "bin" / "asked").read_text().splitlines()
        assert len(asked) == jobs and all(line.startswith(" -I -m pip install --no-user ") for line in asked)


FIXED = ["experiment=smoke", "'experiment=smoke'", "alpha=0 resume=auto", "-m seed=0,1", "'seed=range(9)' --multirun",
         "trainer.max_steps=9", '"trainer.budget=2m"', "hydra.mode=MULTIRUN", "--help", "alpha=0 --plan"]  # fmt: skip
OPEN = ["", "model.num_experts=4", "data.path=my_experiment.txt", "'data.path=an experiment=b.txt'", "name=resume=x",
        "model=dense '--config-dir' m", "'data.path=o)c.txt'"]  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("given", FIXED + OPEN)
def test_make_train_has_a_budget_unless_a_word_of_args_fixes_the_steps_or_trains_nothing(given: str) -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "train", f"ARGS={given}"], cwd=ROOT, capture_output=True, text=True
    )
    words = shlex.split(printed.stdout.splitlines()[-1])
    assert words[1:] == ["-m", "switch_lm.train", *["trainer.budget=5m"] * (given in OPEN), *shlex.split(given)]
