"""Runs what is missing, several at a time; stopped or killed, it continues where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from bench.machine import processor

from study.lines import Keyed, Lines, commit_of_code
from switch_lm.config.durations import in_words
from switch_lm.storage.run_folder import RESULT
from switch_lm.storage.runs import BEST, CHECKPOINTS, LAST

COMMAND = (sys.executable, "-m", "switch_lm.train")
STOPPED = (0, 130, 143, -2, -15)  # exit codes of a run that saved a checkpoint, or was stopped before there was one
POLL = 1.0  # seconds between two looks at the runs
GUESSED_STEP = 0.4  # seconds, before there is a run


class Job(Keyed, Protocol):
    """A run that a long experiment asks for."""

    @property
    def steps(self) -> int: ...

    @property
    def label(self) -> str:
        """For the console."""

    @property
    def folder(self) -> Path:
        """Where it is run."""

    @property
    def words(self) -> list[str]:
        """Its command line: it continues what was stopped or killed."""

    @property
    def keeps(self) -> bool:
        """Whether its weights are needed when it is finished."""

    def figures(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What its line holds of it, besides its key. `result`: the content of result.json."""


SomeJob = TypeVar("SomeJob", bound=Job)
SomeLines = TypeVar("SomeLines", bound=Lines)


@dataclass
class Runner(Generic[SomeJob, SomeLines]):
    """`width` runs at a time. `until`: when it stops, by `time.monotonic`.

    `jobs`: all runs in their order, as far as they are known from the results; `later`: the seconds of what follows.
    """

    file: Path
    results: SomeLines
    jobs: Callable[[SomeLines], Iterable[SomeJob]]
    width: int
    until: float
    later: Callable[[], float] = lambda: 0.0
    commit: str | None = field(default_factory=commit_of_code)
    running: dict[SomeJob, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: set[SomeJob] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() >= self.until

    def missing(self, wanted: Callable[[SomeJob], bool] = lambda job: True) -> list[SomeJob]:
        return [job for job in self.results.missing(self.jobs(self.results)) if wanted(job)]

    def run(self, wanted: Callable[[SomeJob], bool] = lambda job: True) -> bool:
        """Whether none of those that are wanted is missing now.

        At a signal or the end of the time, runs save a checkpoint and end.
        """
        try:
            while not self.is_over:
                self._collect()
                waiting = [job for job in self.missing(wanted) if job not in self.running and job not in self.failed]
                for job in waiting[: self.width - len(self.running)]:
                    self.running[job] = self._start(job)
                if not self.running:
                    break
                time.sleep(POLL)
        finally:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.wait()
            self._collect()
        return not self.missing(wanted)

    def _start(self, job: SomeJob) -> subprocess.Popen[bytes]:
        threads = max(1, (os.cpu_count() or 1) // self.width)
        command = [*COMMAND, *job.words, f"trainer.threads={threads}"]
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._log(job).open("ab") as log:
            # In a session of its own: Ctrl-C would reach it twice, and a second signal cuts its saving short.
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def _log(self, job: SomeJob) -> Path:
        return job.folder.with_name(f"{job.folder.name}.log")

    def _collect(self) -> None:
        for job, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[job]
            if (job.folder / RESULT).is_file():
                self._store(job)
            elif process.returncode not in STOPPED:
                self.failed.add(job)
                log = self._log(job)
                print(
                    f"{job.label}: ended with {process.returncode}, see {log}; the same command tries again", flush=True
                )

    def _store(self, job: SomeJob) -> None:
        result = json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
        hardware = result["hardware"]
        where = {"machine": f"{processor()}, {hardware['name']}, {hardware['precision']}", "commit": self.commit}
        row = job.figures(result) | where | {"torch": result["versions"]["torch"]}
        self.results = self.results.add(dict(zip(self.results.KEY, job.key, strict=True)) | row, self.file)
        self.say(f"{job.label}: {row['val_loss']:.4f} in {row['seconds']:.0f} s")
        for name in () if job.keeps else (BEST, LAST):
            (job.folder / CHECKPOINTS / name).unlink(missing_ok=True)

    def say(self, text: str) -> None:
        left = self.seconds_left()
        print(f"{time.strftime('%H:%M:%S')}  {text}; {left:,.0f} s left ({in_words(left)})", flush=True)

    def seconds_left(self) -> float:
        """From the mean seconds of a step of each kind of run; a kind without a run takes the mean of the others."""
        rates: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for row in self.results.rows:
            rates[self.results.kind(row)].append(float(row["seconds"]) / int(row["steps"]))
        usual = fmean(map(fmean, rates.values())) if rates else GUESSED_STEP
        own = [
            (job.steps, self.results.kind(dict(zip(self.results.KEY, job.key, strict=True)))) for job in self.missing()
        ]
        return sum(steps * fmean(rates.get(kind, [usual])) for steps, kind in own) / self.width + self.later()
