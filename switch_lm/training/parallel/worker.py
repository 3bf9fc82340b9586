"""A process that trains with others: `python -m switch_lm.training.parallel.worker RANK FOLDER`.

Its task is in the folder, where it prints why it failed. It writes nothing else, and ends when its input does.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from switch_lm.commandline.process import environment, keep_freed_memory
from switch_lm.config.durations import seconds_of
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import resolved
from switch_lm.storage.files import replace_text
from switch_lm.storage.run_folder import RunFolder, Stopped
from switch_lm.training.parallel.outside import FOREVER
from switch_lm.training.parallel.watch import HERE, LOST, READY, TASK, Pulse, of_connection, output_of
from switch_lm.training.signals import StopSignals


@environment()
def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    take_part(Path(sys.argv[2]), int(sys.argv[1]))


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not by its buffer, whose lock would keep Python from ending
        pass
    os._exit(0)


def take_part(folder: Path, rank: int) -> None:
    """The run as process number `rank`, to the end of its last validation. An error ends the process."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    with _printing_to(output_of(folder, rank)) as terminal:
        _watch_the_first(folder, rank, task, terminal)
        signals = StopSignals(Path(task["run"]), patient=True)
        signals.nothing_to_save = False  # the first process decides what comes of a signal
        try:
            with signals:
                keep_freed_memory()
                load_plugins()
                train(task, rank, signals)
        except Stopped:
            pass  # as all others
        except Exception as error:
            traceback.print_exc()
            ours, words = type(error).__module__.startswith("switch_lm."), " ".join(str(error).split())
            print(words if ours else f"{type(error).__name__}: {words}", flush=True)
            _end(folder, rank, LOST if of_connection(words) else 1)


def train(task: dict[str, Any], rank: int, signals: StopSignals) -> None:
    from switch_lm.training.hardware import Hardware
    from switch_lm.training.parallel.group import Group
    from switch_lm.training.parallel.strategy import connect, store_in
    from switch_lm.training.prepare import prepare
    from switch_lm.training.run import trainer_of
    from switch_lm.training.saving import Saving

    config, hardware = resolved(task["config"]), Hardware(**task["hardware"])
    resumes_from = None if task["resumes_from"] is None else Path(task["resumes_from"])
    run, group = RunFolder(Path(task["run"]), resumes_from), Group(rank=rank, size=config.trainer.processes)
    os.environ["OMP_NUM_THREADS"] = str(hardware.threads)  # or Lightning would choose
    with prepare(config, run, signals=signals, heading="", again=True, hardware=hardware) as training:
        module = training.module
        store = store_in(Path(task["folder"]), group.size)
        store.set(f"{HERE}/{rank}", "")
        connect(store, group, device=hardware.device, seconds=FOREVER)
        group.begin = lambda: store.set(f"{READY}/{rank}", "")
        module.group, module.saving = group, Saving(run.checkpoints, config.trainer, signals, group)
        trainer_of(training, group).fit(module, training.data, ckpt_path=resumes_from)


@contextmanager
def _printing_to(file: Path) -> Iterator[int]:
    """In its block all output goes to a file. Gives the number of what was the standard error stream."""
    before = [os.dup(number) for number in (1, 2)]
    with file.open("ab") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    try:
        yield before[1]
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, old in enumerate(before, 1):
            os.dup2(old, number)
            os.close(old)


def _watch_the_first(folder: Path, rank: int, task: dict[str, Any], terminal: int) -> None:
    """Ends this process if the first one is silent for too long; of several such processes one says so."""
    timeout, run = task["config"]["trainer"]["peer_timeout"], Path(task["run"]).name

    def look() -> None:
        if pulse.silent[0] < seconds_of(timeout):
            return
        words = f"{pulse.named(0)} did not answer for {seconds_of(timeout):g} s (trainer.peer_timeout)"
        print(words, flush=True)
        if rank == 1:
            fix = f"end it, and continue from the last checkpoint with resume={run}"
            os.write(terminal, f"{words}: the others have ended; {fix}\n".encode())
        _end(folder, rank, 1)

    pulse = Pulse(folder, rank, [0], after_beat=look)
    pulse.start()


def _end(folder: Path, rank: int, code: int) -> NoReturn:
    """At once, also where another thread is in the middle of something."""
    with suppress(OSError):  # the first process has ended, and removed the folder
        replace_text(output_of(folder, rank).with_suffix(".code"), str(code))
    os._exit(code)


if __name__ == "__main__":
    main()
