"""What a newcomer types first: the list of commands, their help and versions."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import switch_lm
from switch_lm.__main__ import COMMANDS
from switch_lm.config.schema import KEYS

PACKAGE = Path(switch_lm.__file__).parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)


def test_the_package_lists_every_command_and_no_other() -> None:
    listed = run("switch_lm")
    assert re.findall(r"python -m switch_lm\.(\w+)", listed.stdout) == list(COMMANDS)
    files = {file.stem for file in PACKAGE.glob("*.py") if '__name__ == "__main__"' in file.read_text(encoding="utf-8")}
    assert files - {"__main__"} == set(COMMANDS)
    wrong = run("switch_lm", "trian")
    assert wrong.returncode == 2 and "trian: no such command" in wrong.stderr and not wrong.stdout


def test_a_command_runs_by_its_name_alone_too() -> None:
    by_name, itself = run("switch_lm", "generate", "--top-k", "0"), run("switch_lm.generate", "--top-k", "0")
    assert by_name.returncode == itself.returncode == 2 and by_name.stderr == itself.stderr


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command with an option after which it ends with 0, and returns what it printed."""

    def printed(name: str, option: str) -> str:
        module = f"switch_lm.{name}"
        monkeypatch.setattr(sys, "argv", [module, option])
        with pytest.raises(SystemExit) as ended:
            sys.exit(import_module(module).main())
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("name", ["__main__", *COMMANDS])
def test_every_command_states_the_version(name: str, shown: Callable[..., str]) -> None:
    assert shown(name, "--version") == f"switch_lm {switch_lm.__version__}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_help_ends_with_examples(name: str, shown: Callable[..., str]) -> None:
    examples = shown(name, "--help").partition("examples:\n")[2].strip().splitlines()
    assert len(examples) >= 2 and all(line.strip().startswith(f"python -m switch_lm.{name}") for line in examples)


def test_the_help_of_train_explains_ten_keys_by_their_defaults() -> None:
    config: Any = OmegaConf.load(PACKAGE.parent / "configs" / "train.yaml")
    text = config.hydra.help.template
    shown = re.findall(r"^  ([\w.]+)=(\S+)  +\S", text, re.MULTILINE)
    assert len(shown) == 10
    for key, value in shown:
        assert str(KEYS[key].default if KEYS[key].default is not None else "null") == value, key
    assert len(re.findall(r"^  python -m switch_lm.train", text, re.MULTILINE)) == 5
