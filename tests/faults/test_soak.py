"""A sweep in one process does not grow, in small; `make soak` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.mark.long
def test_thirty_jobs_in_one_process_hold_the_bounds_of_the_long_soak() -> None:
    done = subprocess.run(
        [sys.executable, SOAK, "--runs", "30"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0 and "held" in done.stdout, done.stdout + done.stderr
