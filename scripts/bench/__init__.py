"""The benchmarks behind `scripts/benchmark.py`: one question a file."""
