"""The options of long experiments."""

import argparse
import math


def long_parser(name: str, about: str) -> argparse.ArgumentParser:
    """With --hours and --report, and what both mean."""
    again = f"{about} It can be stopped or killed at any time; the same command continues."
    options = argparse.ArgumentParser(prog=f"scripts/{name}.py", description=again)
    hours = "stop after H hours, with everything saved; the same command continues"
    options.add_argument("--hours", type=_positive, default=math.inf, metavar="H", help=hours)
    report = "only make the report again, from what is stored"
    options.add_argument("--report", action="store_true", help=report)
    return options


def _positive(text: str) -> float:
    if not (value := float(text)) > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0; give for example 2.8")
    return value
