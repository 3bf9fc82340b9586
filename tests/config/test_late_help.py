"""The trainer's command line on Python 3.14, whose argparse expands each help text when an argument is added."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import hydra
import pytest
from hydra._internal import utils

from switch_lm.config.late_help import late_help
from switch_lm.train import main


def check_help(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
    """What 3.14 does with each action of a parser; groups of arguments have no formatter, and are not checked."""
    if action.help and hasattr(parser, "_get_formatter"):
        try:
            parser._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error


@pytest.fixture(autouse=True)
def on_python_314(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its argparse, as far as help texts go."""
    add = argparse.ArgumentParser.add_argument

    def add_argument(parser: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        action = add(parser, *names, **options)
        parser._check_help(action)  # type: ignore[attr-defined]
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
    if sys.version_info < (3, 14):
        monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--cfg", "job"], "capacity_factor: 1.25"),
        (["--help"], "Powered by Hydra"),
        (["--hydra-help"], "--shell-completion,-sc : Install or Uninstall shell completion:\n    Bash - Install:"),
        (["--version"], f"Hydra {hydra.__version__}"),
        (["-sc", "query=bash"], "alpha="),
    ],
)
def test_hydras_flags_work_and_nothing_is_left_changed(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.setenv("COMP_LINE", "train alph")
    monkeypatch.setattr("hydra._internal.hydra.configure_log", lambda *_: None)  # for the whole process
    try:
        main()
    except SystemExit as end:
        assert not end.code
    assert text in capsys.readouterr().out and utils.argparse is argparse  # type: ignore[attr-defined]
    with late_help(), pytest.raises(ValueError, match="badly formed"):  # of any other parser
        argparse.ArgumentParser().add_argument("--share", help="50 % of it")


def test_hydra_still_needs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, Hydra has mended it: remove switch_lm/config/late_help.py, its use in train.py and these tests."""
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(ValueError, match="badly formed help string"):
        utils.get_args_parser()
