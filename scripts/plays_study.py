"""Where sparse beats dense, on Tiny Shakespeare and with 29 more plays: runs what is missing, then reports."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from study.options import long_parser

from switch_lm.commandline.signals import ended_by_signals


def parser() -> argparse.ArgumentParser:
    options = long_parser("plays_study", "Trains, times and compares sparse and dense models: docs/plays_study.md.")
    jobs = "train N at once, a share of the cores each (default: 2)"
    options.add_argument("--jobs", type=int, choices=range(1, 65), default=2, metavar="N", help=jobs)
    options.add_argument("--times", action="store_true", help="time the steps again, with nothing else running")
    return options


@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is done or the time is over, 1 if something failed."""
    options = parser().parse_args(argv)
    from study import plan, report
    from study.runner import Runner

    from switch_lm.storage.files import as_json, replace_text

    results = plan.Results.read(plan.DATA)
    runner = Runner(plan.DATA, results, plan.jobs, options.jobs, time.monotonic() + 3600 * options.hours)
    complete = not runner.missing()
    if not (options.report or options.times):
        runner.say(f"{len(runner.missing())} runs to come, as far as is known")
        complete = runner.run()
    times = json.loads(plan.TIMES.read_text(encoding="utf-8")) if plan.TIMES.is_file() else {}
    if options.times or (complete and not times):
        from study.seconds import seconds
        from study.timing import BusyError

        try:
            times = seconds(plan.timed(runner.results)) | {"commit": runner.commit}
        except BusyError as error:
            print(error, file=sys.stderr)
            return 1
        replace_text(plan.TIMES, as_json(times))
    if runner.results.rows:
        report.write(runner.results, times)
        print(f"report: {report.PAGE}, from {plan.DATA} and {plan.TIMES}")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
