"""The form of a command's help: what it is for, its options, examples."""

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

from switch_lm import __version__

WIDTH = 79


def command_parser(name: str, about: str, examples: Mapping[str, str], **how: Any) -> argparse.ArgumentParser:
    """A parser for `python -m switch_lm.NAME`. `examples`: from arguments to what they do."""
    prog, widest = f"python -m switch_lm.{name}", max(map(len, examples))
    lines = [f"  {prog} {arguments:<{widest}}  {words}" for arguments, words in examples.items()]
    options = argparse.ArgumentParser(
        prog=prog,
        description=textwrap.fill(about, WIDTH),
        epilog="\n".join(["examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **how,
    )
    options.add_argument("--version", action="version", version=f"switch_lm {__version__}")
    return options
