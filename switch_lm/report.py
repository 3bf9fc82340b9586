"""Writes a report on runs: `python -m switch_lm.report PATH...`."""

import argparse
import math
import sys
from collections.abc import Sequence

from switch_lm.commandline.closed_pipe import survive_closed_pipe
from switch_lm.commandline.command import add_outputs, as_path, number
from switch_lm.commandline.help import command_parser
from switch_lm.commandline.signals import ended_by_signals
from switch_lm.config.keys import NAME
from switch_lm.reporting.records import ReportError
from switch_lm.reporting.write import DEFAULT_NAME, print_report, write_report
from switch_lm.storage.runs import OUTPUTS


def parser() -> argparse.ArgumentParser:
    about = "Compares runs in words, tables and pictures: report.md, report.html, summary.csv, pictures/."
    examples = {
        "outputs/sweeps/capacity_sweep": "a sweep",
        '"outputs/runs/*" --out comparison': "all single runs",
    }
    options = command_parser("report", about, examples)
    paths = "a sweep's folder, a run or its name, or a glob; several make one report"
    options.add_argument("paths", nargs="+", metavar="PATH", help=paths)
    out = f"where it is written (default: the sweep's folder, if that is the one PATH; else below {OUTPUTS}/reports)"
    options.add_argument("--out", type=as_path, metavar="FOLDER", help=out)
    options.add_argument("--name", type=_name, default=DEFAULT_NAME, help=f"of its files (default: {DEFAULT_NAME})")
    default = "the lowest multiple of 0.05 that half of the seeds of the control and of another variant reached"
    threshold = f"loss to which Table 1 counts (default: {default})"
    options.add_argument("--threshold", type=_threshold, metavar="LOSS", help=threshold)
    add_outputs(options)
    return options


@survive_closed_pipe()
@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 1 and one message for what a user can fix."""
    asked = vars(parser().parse_args(argv))
    try:
        print_report(write_report(asked.pop("paths"), **asked))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _name(text: str) -> str:
    if not NAME.holds(text):
        raise argparse.ArgumentTypeError(f"{text!r} {NAME.text}; give for example {DEFAULT_NAME}")
    return text


def _threshold(text: str) -> float:
    if not 0.0 < (value := number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite loss above 0; give for example 1.55")
    return value


if __name__ == "__main__":
    sys.exit(main())
