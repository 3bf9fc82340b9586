"""Fine-tuning at small scale: dense, Switch and upcycled: runs what is missing, then reports."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from study.options import long_parser

from switch_lm.commandline.signals import ended_by_signals


def parser() -> argparse.ArgumentParser:
    options = long_parser("finetune_study", "Pre-trains, fine-tunes and compares models: docs/finetune.md.")
    jobs = "train N at once, a share of the cores each (default: 2)"
    options.add_argument("--jobs", type=int, choices=range(1, 65), default=2, metavar="N", help=jobs)
    return options


@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is done or the time is over, 1 if something failed."""
    options = parser().parse_args(argv)
    from study import finetune
    from study.runner import Runner

    results, until = finetune.Results.read(finetune.DATA), time.monotonic() + 3600 * options.hours
    runner = Runner(finetune.DATA, results, finetune.jobs, options.jobs, until)
    if not options.report:
        runner.say(f"{len(runner.missing())} runs to come, as far as is known")
        runner.run()
    if runner.results.rows:
        finetune.write(runner.results)
        print(f"report: {finetune.PAGE}, from {finetune.DATA}")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
