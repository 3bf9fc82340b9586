"""Measures how fast this is, beside a dense model and other implementations: `python scripts/benchmark.py --help`."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from types import ModuleType

from bench.machine import machine
from bench.options import QUICK_REPETITIONS, REPETITIONS, Options, say
from bench.rows import Report

from switch_lm.hardware import keep_freed_memory

ABOUT = {
    "layer": "a Switch layer beside a dense feed-forward and other implementations",
    "step": "a training step beside the annotated implementation and nanoGPT's way; growth with experts and tokens",
    "loss": "seconds from a command's start to a validation loss, for given recipes",
    "generate": "characters a second with and without the cache; time to the first character",
    "overhead": "what logging and the framework add to a step; how long commands take to start",
}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="scripts/benchmark.py", description=__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    for name, about in ABOUT.items():
        command = commands.add_parser(name, help=about, description=about)
        if name == "loss":
            add_loss(command)
            continue
        command.add_argument("--quick", action="store_true", help="few cases and short ones: a check for regressions")
        repetitions = f"of each figure (default: {REPETITIONS}, quick: {QUICK_REPETITIONS})"
        command.add_argument("--repetitions", type=int, metavar="N", help=repetitions)
        only = "only cases whose name contains one of these"
        command.add_argument("--only", nargs="+", default=[], metavar="TEXT", help=only)
    return options


def add_loss(command: argparse.ArgumentParser) -> None:
    recipes = "values of experiment=, and `default`; without any, lists what there is"
    command.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=recipes)
    command.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 .. N-1 (default: 1)")
    control = "a dense recipe: each seed runs it too, and is set beside it"
    command.add_argument("--control", metavar="EXPERIMENT", help=control)
    command.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    command.set_defaults(quick=False, only=[])


def main() -> int:
    given = parser().parse_args()
    seeds = getattr(given, "seeds", 1)
    repetitions = seeds if given.command == "loss" else given.repetitions
    options = Options(
        repetitions=repetitions or (QUICK_REPETITIONS if given.quick else REPETITIONS),
        quick=given.quick,
        only=tuple(given.only),
        experiments=tuple(getattr(given, "experiments", ())),
        overrides=tuple(getattr(given, "override", ())),
        seeds=seeds,
        control=getattr(given, "control", None),
    )
    return run(given.command, import_module(f"bench.{given.command}"), options)


def run(name: str, benchmark: ModuleType, options: Options) -> int:
    """Prints and writes what was measured, all of it or what there was until Ctrl-C."""
    started = time.perf_counter()
    keep_freed_memory()  # as training does; the other implementations are faster for it, too
    called = f"{name}-quick" if options.quick else name
    report = Report(called, machine(), options.repetitions, benchmark.NOTES)
    try:
        for row in benchmark.measure(options):
            report.rows.append(row)
    except KeyboardInterrupt:
        report.interrupted = True
    if report.rows:
        paths = report.write(options.outputs, time.strftime("%Y%m%d-%H%M%S"))
        print(report.markdown(), flush=True)
        say(f"{called}: {time.perf_counter() - started:.0f} s; written to {', '.join(map(str, paths))}")
    return 130 if report.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
