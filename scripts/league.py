"""The router league: does learned routing beat a fixed or random assignment? Runs what is missing, then reports."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

from switch_lm.commandline.signals import ended_by_signals


def parser() -> argparse.ArgumentParser:
    about = (
        "Trains, measures and compares all routers: docs/routers.md, from docs/data/league.csv and league.json. It can "
        "be stopped or killed at any time; the same command continues."
    )
    options = argparse.ArgumentParser(prog="scripts/league.py", description=about)
    hours = "stop after H hours, with everything saved; the same command continues"
    options.add_argument("--hours", type=positive, default=math.inf, metavar="H", help=hours)
    jobs = "train N at once, a share of the cores each (after `make launchers`); times are measured by one alone"
    options.add_argument("--jobs", type=int, choices=range(1, 65), default=1, metavar="N", help=jobs)
    quick = "a rehearsal of every stage in a quarter of an hour, all below outputs/league_quick"
    options.add_argument("--quick", action="store_true", help=quick)
    report = "only make the report again, from what is stored"
    options.add_argument("--report", action="store_true", help=report)
    return options


def positive(text: str) -> float:
    if not (value := float(text)) > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0; give for example 2.8")
    return value


@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is done or the time is over, 1 if something failed or there is nothing to report."""
    options = parser().parse_args(argv)
    from contest import plan, report
    from contest.session import OutOfTime, Session

    league, complete = plan.QUICK if options.quick else plan.League(), True
    session = Session(league, time.monotonic() + 3600 * options.hours, options.jobs)
    try:
        if not options.report:
            complete = session.play()
    except OutOfTime:
        print(f"stopped after {options.hours:g} hours; all is saved, and the same command continues", flush=True)
        return 0
    if (problem := report.write(league, session.results, session.stages)) is not None:
        print(problem, file=sys.stderr)
        return 1
    print(f"report: {league.page}, from {league.csv} and {league.stages}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
