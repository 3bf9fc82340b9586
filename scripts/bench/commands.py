"""How long do commands of a user take, each a fresh process?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.harness import Spread, told
from bench.rows import Row, at_most

SCRIPTS = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """Ours, with this folder's modules to be found."""
    others = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": str(SCRIPTS) + (f"{os.pathsep}{others}" if others else "")}


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def seconds_to_end(command: Sequence[str]) -> float:
    """CalledProcessError if it fails."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, env=environment())
    return time.perf_counter() - started


def seconds_to_output(command: Sequence[str]) -> float:
    """To its first byte on stdout; ChildProcessError if it ends without one."""
    started = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, bufsize=0, env=environment()) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    if not first or process.returncode != 0:
        raise ChildProcessError(f"{' '.join(command)} ended with code {process.returncode}")
    return seconds


def row(case: str, name: str, measure: Callable[[], float], *, times: int, limit: float) -> Row:
    """The median of `times` runs, after one that is not counted and warms the caches."""
    try:
        measure()
        figure = Spread.of([measure() for _ in range(times)])
    except subprocess.CalledProcessError as error:
        return Row(case, name, error=" ".join(error.stderr.decode(errors="replace").split())[-200:])
    except OSError as error:
        return Row(case, name, error=told(error))
    return Row(case, name, figure, " s", at_most(figure, limit, " s"), {"runs": str(times)})
