"""Measures speed beside a dense model and other implementations: `python scripts/benchmark.py --help`."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module

from bench.machine import machine
from bench.options import QUICK_REPETITIONS, REPETITIONS, Options, say
from bench.rows import Report

from switch_lm.commandline.process import keep_freed_memory

ABOUT = {
    "layer": "a Switch layer beside a dense feed-forward and other implementations",
    "step": "a training step beside the annotated implementation and nanoGPT's way",
    "loss": "seconds from the start of a command to a validation loss, for given recipes",
    "processes": "a training step in two processes beside one, what they send, and what share of the time that takes",
    "generate": "characters per second with and without the cache; time to the first character",
}


def parser() -> argparse.ArgumentParser:
    """The destinations are the fields of Options."""
    options = argparse.ArgumentParser(prog="scripts/benchmark.py", description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    for name, about in ABOUT.items():
        add = commands.add_parser(name, help=about, description=about).add_argument
        if name == "loss":
            recipes = "values of experiment=, and `default`; without any, lists what there is"
            add("experiments", nargs="*", metavar="EXPERIMENT", help=recipes)
            seeds = "seeds 0 .. N-1 (default: 1)"
            add("--seeds", dest="repetitions", type=count, default=1, metavar="N", help=seeds)
            add("--control", metavar="EXPERIMENT", help="a dense recipe to compare with: every seed runs it too")
            overrides = "overrides for every run"
            add("--override", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help=overrides)
            continue
        add("--quick", action="store_true", help="fewer and shorter cases: a check for regressions")
        repetitions = f"repetitions of every measurement (default: {REPETITIONS}, quick: {QUICK_REPETITIONS})"
        add("--repetitions", type=count, metavar="N", help=repetitions)
        if name == "step":
            add(
                "--share",
                action="store_true",
                help="also the share of this machine's matrix products that a step reaches",
            )
        add("--only", nargs="+", default=[], metavar="TEXT", help="only cases whose name contains one of these")
    return options


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number


def main() -> int:
    """Prints and writes the results: all of them, or those that there were before Ctrl-C."""
    given = vars(parser().parse_args())
    command = given.pop("command")
    if given["repetitions"] is None:
        given["repetitions"] = QUICK_REPETITIONS if given["quick"] else REPETITIONS
    options, benchmark, started = Options(**given), import_module(f"bench.{command}"), time.perf_counter()
    keep_freed_memory()  # as training does; the other implementations are faster with it, too
    name = f"{command}-quick" if options.quick else command
    report = Report(name, machine(), options.repetitions, benchmark.NOTES)
    try:
        for row in benchmark.measure(options):
            report.rows.append(row)
    except KeyboardInterrupt:
        report.interrupted = True
    if report.rows:
        paths = report.write(options.outputs, time.strftime("%Y%m%d-%H%M%S"))
        print(report.markdown(), flush=True)
        say(f"{name}: {time.perf_counter() - started:.0f} s; written to {', '.join(map(str, paths))}")
    return 130 if report.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
