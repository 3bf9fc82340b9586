"""What do several processes gain and cost? Whole commands, each in processes of its own, beside one process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import ours
from bench.harness import Spread, one_line
from bench.options import Options, say
from bench.rows import Row

PROCESSES, STEPS, QUICK_STEPS = 2, 40, 10
CHARACTERS = 60_000  # of the text: validations are short
COUNTERS = Path("/proc/net/dev")
CASE = f"a step of the default recipe in {PROCESSES} processes"
NOTES = (
    f"Eager, float32, {STEPS} steps (quick: {QUICK_STEPS}, once) of whole commands that take turns; seconds of their "
    "steps. The batch is the same, so that a process has half of its rows.",
    "Communication: what a step in two processes takes longer than one in one process with half the rows, which is "
    "what each of them computes. Waiting for the slower one is part of it.",
    "Sent: by one process in a step. The formula is 4 bytes x 2 (N - 1) / N x parameters, of a ring that adds up the "
    "gradients in float32. Measured on the loopback interface, which other programs use too, over the whole command.",
)


class Case(NamedTuple):
    processes: int
    threads: int  # of all
    rows: int


def measure(options: Options) -> Iterator[Row]:
    if not options.wants(CASE):
        return
    rows, steps = ours.composed().data.batch_size, QUICK_STEPS if options.quick else STEPS
    cases = {
        "several": Case(PROCESSES, PROCESSES, rows), "one thread": Case(1, 1, rows),
        "as many threads": Case(1, PROCESSES, rows), "a part": Case(1, 1, rows // PROCESSES),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    sent: list[float] = []
    repetitions = 1 if options.quick else options.repetitions  # each starts four commands
    for repetition in range(repetitions):
        say(f"processes: {repetition + 1} of {repetitions}")
        for name, case in cases.items():
            try:
                before = bytes_on_loopback()
                seconds[name].append(step_seconds(case, steps))
            except subprocess.CalledProcessError as error:
                yield Row(CASE, name, error=one_line(error))
                return
            if case.processes > 1:
                sent.append((bytes_on_loopback() - before) / steps / PROCESSES / 1e6)

    def ratio(name: str) -> Spread:
        return Spread.of([a / b for a, b in zip(seconds["several"], seconds[name], strict=True)])

    yield Row(CASE, "over 1 process with 1 thread", ratio("one thread"), " x", facts=facts(seconds))
    yield Row(CASE, f"over 1 process with {PROCESSES} threads", ratio("as many threads"), " x")
    shares = [1 - part / whole for part, whole in zip(seconds["a part"], seconds["several"], strict=True)]
    yield Row(CASE, "communication, share of a step", Spread.of(shares))
    yield Row(CASE, "sent per step and process", Spread.of(sent), " MB", facts={"formula": f"{formula():.2f} MB"})


def facts(seconds: dict[str, list[float]]) -> dict[str, str]:
    return {name: f"{1000 * Spread.of(times).median:.0f} ms" for name, times in seconds.items()}


def formula() -> float:
    """Megabytes of gradients that a process sends in a step."""
    config = ours.composed()
    num_params = config.model.num_params(len(ours.vocabulary()), config.router)
    return 4e-6 * num_params * 2 * (PROCESSES - 1) / PROCESSES


def bytes_on_loopback() -> int:
    """All that was sent there since the machine was started; 0 where nobody counts."""
    if not COUNTERS.is_file():
        return 0
    (line,) = (line for line in COUNTERS.read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def step_seconds(case: Case, steps: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        text = Path(name, "text.txt")
        text.write_text(ours.corpus().text(CHARACTERS), encoding="utf-8")
        subprocess.run(
            [
                sys.executable, "-m", "switch_lm.train", f"data.path={text}", f"outputs={name}", "name=run",
                f"trainer.processes={case.processes}", f"trainer.threads={case.threads}",
                f"data.batch_size={case.rows}", f"trainer.max_steps={steps}", f"trainer.val_every={steps}",
                "trainer.precision=fp32", "trainer.compile=false",
                "trainer.device=cpu", "health.every=0", "logger=[]", "logger.sample_length=0",
                "logger.progress=none",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        result = json.loads(Path(name, "runs", "run", "result.json").read_text(encoding="utf-8"))
    return float(result["training_seconds"]) / steps
