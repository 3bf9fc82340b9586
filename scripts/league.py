"""The router league: does learned routing beat a fixed or random assignment? Runs what is missing, then reports."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from study.options import long_parser

from switch_lm.commandline.signals import ended_by_signals


def parser() -> argparse.ArgumentParser:
    about = "Trains, measures and compares all routers: docs/routers.md, from docs/data/league.csv and league.json."
    options = long_parser("league", about)
    jobs = "train N at once, a share of the cores each; times are measured by one alone (default: 1; with --quick 2)"
    options.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", help=jobs)
    quick = "a rehearsal of every stage in a quarter of an hour, all below outputs/league_quick"
    options.add_argument("--quick", action="store_true", help=quick)
    return options


@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is done or the time is over, 1 if something failed or there is nothing to report."""
    options = parser().parse_args(argv)
    from contest import plan, report
    from contest.session import OutOfTimeError, Session

    league, complete = plan.QUICK if options.quick else plan.League(), True
    jobs = options.jobs or (2 if options.quick else 1)
    session = Session(league, time.monotonic() + 3600 * options.hours, jobs)
    try:
        if not options.report:
            complete = session.play()
    except OutOfTimeError:
        print(f"stopped after {options.hours:g} hours; all is saved, and the same command continues", flush=True)
        return 0
    if (problem := report.write(league, session.runner.results, session.stages)) is not None:
        print(problem, file=sys.stderr)
        return 1
    print(f"report: {league.page}, from {league.csv} and {league.stages}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
