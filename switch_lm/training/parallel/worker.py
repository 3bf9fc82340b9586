"""A process that trains with others: `python -m switch_lm.training.parallel.worker RANK`, its task on stdin.

It prints nothing but why it failed, writes nothing, and ends when its input does.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from switch_lm.commandline.process import environment, keep_freed_memory
from switch_lm.config.plugins import load_plugins
from switch_lm.config.rules import resolved
from switch_lm.storage.run_folder import RunFolder, Stopped
from switch_lm.training.parallel.watch import ANSWER, HERE, LOST, READY
from switch_lm.training.signals import StopSignals

FOREVER = 1e7  # seconds: the first process may take its time, and if it ends, so does the input
OF_CONNECTIONS = ("gloo", "pair closure")  # in the messages of torch's errors, which have no class of their own


@environment()
def main() -> None:
    rank, task = int(sys.argv[1]), json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_answer, args=(Path(task["folder"]), rank), daemon=True).start()
    keep_freed_memory()
    load_plugins()
    signals = StopSignals(Path(task["run"]), patient=True)
    signals.nothing_to_save = False  # the first process decides what comes of a signal
    try:
        with signals:
            train(task, rank, signals)
    except Stopped:
        pass  # as all others
    except Exception as error:
        traceback.print_exc()
        ours, words = type(error).__module__.startswith("switch_lm."), " ".join(str(error).split())
        print(words if ours else f"{type(error).__name__}: {words}", flush=True)
        os._exit(LOST if any(word in words for word in OF_CONNECTIONS) else 1)


def train(task: dict[str, Any], rank: int, signals: StopSignals) -> None:
    """The run as process number `rank`, to the end of its last validation."""
    from switch_lm.training.hardware import Hardware
    from switch_lm.training.parallel.group import Group
    from switch_lm.training.parallel.strategy import connect, store_in
    from switch_lm.training.prepare import prepare
    from switch_lm.training.run import trainer_of
    from switch_lm.training.saving import Saving

    config, hardware = resolved(task["config"]), Hardware(**task["hardware"])
    resumes_from = None if task["resumes_from"] is None else Path(task["resumes_from"])
    run, group = RunFolder(Path(task["run"]), resumes_from), Group(rank=rank, size=config.trainer.processes)
    with prepare(config, run, signals=signals, heading="", again=True, hardware=hardware) as training:
        module = training.module
        store = store_in(Path(task["folder"]), group.size)
        store.set(f"{HERE}/{rank}", "")
        connect(store, group, device=hardware.device, seconds=FOREVER)
        group.begin = lambda: store.set(f"{READY}/{rank}", "")
        module.group, module.saving = group, Saving(run.checkpoints, config.trainer, signals, group)
        trainer_of(training, group).fit(module, training.data, ckpt_path=resumes_from)


def _answer(folder: Path, rank: int) -> None:
    """Says that this process is alive, as often as the first one asks; ends it with the first one."""
    while os.read(sys.stdin.fileno(), 1024):  # not by its buffer, whose lock would keep Python from ending
        (folder / f"{ANSWER}_{rank}").touch()
    os._exit(0)


if __name__ == "__main__":
    main()
