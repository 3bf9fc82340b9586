"""The benchmarks behind `scripts/benchmark.py`: one question a file."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as a command does before it loads torch
