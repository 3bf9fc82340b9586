"""How long does the training command take to answer, and to its first step?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from bench import commands
from bench.options import Options, say
from bench.rows import Row

CASE = "start of commands"
ANSWER_TARGET, FIRST_STEP_TARGET = 1.5, 12.0
NOTES = (
    "Start: whole processes, after one that warms the caches (of files, bytecode and compiled kernels). The first step "
    "is that of the default run, compiled where training compiles; it ends the process.",
)


def measure(options: Options) -> Iterator[Row]:
    if not options.wants(CASE):
        return
    train = ("-m", "switch_lm.train")
    for asked in (("--help",), ("--cfg", "job")):
        name = f"python -m switch_lm.train {' '.join(asked)}"
        say(f"overhead: {name}")
        yield timed(name, commands.python(*train, *asked), times=options.repetitions, limit=ANSWER_TARGET)
    if options.quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        say("overhead: first training step")
        command = commands.python("-m", "bench.first_step", f"outputs={folder}")
        yield timed("first training step", command, times=options.repetitions, limit=FIRST_STEP_TARGET)


def timed(name: str, command: list[str], *, times: int, limit: float) -> Row:
    return commands.row(CASE, name, lambda: commands.seconds_to_end(command), times=times, limit=limit)
