"""The benchmarks behind `scripts/benchmark.py`: one question a file."""

import os

from switch_lm.commandline.process import spins

for name, text in spins().items():
    os.environ.setdefault(name, text)  # as a command does before it loads torch
