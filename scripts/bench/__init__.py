"""The benchmarks behind `scripts/benchmark.py`: one question a file."""

import os

from switch_lm.commandline.process import SPINS

for name, text in SPINS.items():
    os.environ.setdefault(name, text)  # as a command does before it loads torch
