"""Starts the other processes of a run from its first one, or meets those that are there, and ends them with it."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from switch_lm.config.durations import seconds_of
from switch_lm.training.parallel.group import Group
from switch_lm.training.parallel.outside import FOLDER
from switch_lm.training.parallel.strategy import connect, store_in
from switch_lm.training.parallel.watch import HERE, READY, TASK, Workers
from switch_lm.training.prepare import Training


@contextmanager
def together(training: Training, meeting: Any = None) -> Iterator[Group]:
    """In its block the run's other processes train with this one, which gets the group; its end ends them.

    `meeting`: the store where those wait that another program started. LostProcessError if one fails, is killed or
    hangs. With `trainer.processes=1`, a group of one.
    """
    size, hardware = training.config.trainer.processes, training.hardware
    if size == 1:
        yield Group()
        return
    # Lightning would choose the threads where this does not say them; `training.prepare.prepare` restores it.
    os.environ["OMP_NUM_THREADS"] = str(hardware.threads)
    group, seconds = Group(size=size), seconds_of(training.config.trainer.peer_timeout)
    with tempfile.TemporaryDirectory(prefix="switch_lm") as name:
        folder = Path(name)
        (folder / TASK).write_text(json.dumps(task_of(training, folder)), encoding="utf-8")
        store = store_in(folder, size)
        if meeting is not None:
            meeting.set(FOLDER, name)
        with Workers(size, folder, started=meeting is not None, seconds=seconds) as workers:
            workers.wait_for(store, HERE)
            try:
                connect(store, group, device=hardware.device, seconds=seconds)
                group.check, group.begin = workers.check, lambda: workers.wait_for(store, READY)
                yield group
            except RuntimeError as error:  # of torch, whose errors of a connection share no other class
                workers.look_for_the_cause(error)
                raise
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()


def task_of(training: Training, folder: Path) -> dict[str, Any]:
    """What a worker has to know, as plain data."""
    run = training.run
    return {
        "config": asdict(training.config),
        "hardware": asdict(training.hardware),
        "run": str(run.path),
        "resumes_from": None if run.resumes_from is None else str(run.resumes_from),
        "folder": str(folder),
    }
