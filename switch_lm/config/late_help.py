"""Lets Hydra 1.3 read a command line on Python 3.14, whose argparse checks each help text when it is added."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from hydra._internal import utils


class _Parser(argparse.ArgumentParser):
    """Gives an argument its help once it has been checked: Hydra's is an object, which it prints itself."""

    def add_argument(self, *names: Any, help: Any = None, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        action.help = help
        return action


@contextmanager
def late_help() -> Iterator[None]:
    """In its block Hydra builds its parser without that check; other parsers keep it. Before 3.14 it changes nothing.

    https://github.com/facebookresearch/hydra/issues/3121: 1.3 has no public way, and 1.4 is to mend it.
    tests/config/test_late_help.py fails once this is no longer needed.
    """
    if not hasattr(argparse.ArgumentParser, "_check_help"):  # 3.14 and newer have it
        yield
        return
    names = vars(utils)
    before = names["argparse"]
    names["argparse"] = SimpleNamespace(ArgumentParser=_Parser)  # all that Hydra's module takes of it
    try:
        yield
    finally:
        names["argparse"] = before
