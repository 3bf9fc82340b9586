"""Runs what is missing, several at a time; stopped or killed, it continues where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from bench.machine import processor

from study.lines import commit_of_code
from study.plan import Job, Results, row_of
from switch_lm.config.durations import in_words
from switch_lm.storage.run_folder import RESULT

COMMAND = (sys.executable, "-m", "switch_lm.train")
STOPPED = (0, 130, 143, -2, -15)  # exit codes of a run that saved a checkpoint, or was stopped before there was one
POLL = 1.0  # seconds between two looks at the runs
GUESSED_STEP = 0.4  # seconds, before there is a run


@dataclass
class Pool:
    """`width` runs at a time. `until`: when it stops, by `time.monotonic`."""

    file: Path
    jobs: Callable[[Results], Iterable[Job]]
    width: int
    until: float
    results: Results = field(default_factory=Results)
    commit: str | None = field(default_factory=commit_of_code)
    running: dict[Job, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: set[Job] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.results = Results.read(self.file)

    def missing(self) -> list[Job]:
        return self.results.missing(self.jobs(self.results))

    def run(self) -> bool:
        """Whether nothing is missing now. At a signal or the end of the time, runs save a checkpoint and end."""
        try:
            while time.monotonic() < self.until:
                self._collect()
                waiting = [job for job in self.missing() if job not in self.running and job not in self.failed]
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
        return not self.missing()

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        threads = max(1, (os.cpu_count() or 1) // self.width)
        command = [*COMMAND, *job.words, f"trainer.threads={threads}"]
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _collect(self) -> None:
        for job, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[job]
            if (job.folder / RESULT).is_file():
                row = row_of(job, machine=processor(), commit=self.commit)
                self.results = self.results.add(row, self.file)
                words = f"{job.part}: {job.model}, {job.text}, {job.steps} steps, seed {job.seed}, {job.overrides}"
                self.say(f"{words}: {row['val_loss']:.4f} in {row['seconds']:.0f} s")
            elif process.returncode not in STOPPED:
                self.failed.add(job)
                log = job.folder.with_suffix(".log")
                print(
                    f"{job.key}: ended with {process.returncode}, see {log}; the same command tries again", flush=True
                )

    def say(self, text: str) -> None:
        left = self.seconds_left()
        print(f"{time.strftime('%H:%M:%S')}  {text}; {left:,.0f} s left ({in_words(left)})", flush=True)

    def seconds_left(self) -> float:
        """From the mean times of a step of each model; a model without a run is taken to be as fast as the others."""
        rates: dict[tuple[str, str], list[float]] = {}
        for row in self.results.rows:
            rates.setdefault((row["part"], row["model"]), []).append(float(row["seconds"]) / int(row["steps"]))
        usual = fmean(map(fmean, rates.values())) if rates else GUESSED_STEP
        steps = sum(job.steps * fmean(rates.get((job.part, job.model), [usual])) for job in self.missing())
        return steps / self.width
