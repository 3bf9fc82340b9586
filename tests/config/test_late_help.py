"""The trainer's command line on Python 3.14, whose argparse expands each help text when an argument is added."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import Any

import pytest
from hydra._internal import utils

from switch_lm.config.late_help import late_help
from switch_lm.train import main


@pytest.fixture(autouse=True)
def on_python_314(monkeypatch: pytest.MonkeyPatch) -> None:
    add = argparse.ArgumentParser.add_argument

    def add_argument(parser: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        action = add(parser, *names, **options)
        try:
            parser._get_formatter()._expand_help(action) if action.help else None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", lambda *_: None, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)


FLAGS = {"--cfg job": "capacity_factor: 1.25", "--help": "Powered by Hydra", "-sc query=bash": "alpha=",
         "--hydra-help": "-sc : Install or Uninstall shell completion:\n    Bash - Install:"}  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS)
def test_hydras_flags_work_and_other_parsers_keep_the_check(
    flags: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *flags.split()])
    monkeypatch.setenv("COMP_LINE", "train alph")
    monkeypatch.setattr("hydra._internal.hydra.configure_log", lambda *_: None)  # for the whole process
    with suppress(SystemExit):
        main()
    assert FLAGS[flags] in capsys.readouterr().out and vars(utils)["argparse"] is argparse
    with late_help(), pytest.raises(ValueError, match="badly formed"):
        argparse.ArgumentParser().add_argument("--share", help="50% of it")


def test_hydra_still_needs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, Hydra has mended it: remove switch_lm/config/late_help.py, its use in train.py and these tests."""
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(ValueError, match="badly formed help string"):
        utils.get_args_parser()
