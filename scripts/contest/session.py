"""One start of the league: what is left and how long it takes, runs by the sweep engine, then the measurements."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.machine import processor
from study.lines import commit_of_code

from contest import plan
from contest.plan import DENSE_CURVE, PARTS, POWER, TABLE, Job, League, Results
from switch_lm.config.durations import in_words
from switch_lm.storage.run_folder import RESULT, read_job
from switch_lm.storage.runs import BEST, CHECKPOINTS, LAST

EACH, ONCE = ("certificate", "explanation"), ("seconds", "generation")  # of each entry; of all together, in turns
GUESSED = {"certificate": 40.0, "explanation": 20.0, "seconds": 200.0, "generation": 100.0}  # before one was measured
GUESSED_STEP, POLL = 0.2, 1.0  # seconds: of a step before there is one; between two looks for finished runs
Measure = Callable[..., dict[str, Any]]


class OutOfTime(Exception):
    """The time that was given is over; everything that is finished is stored."""


@dataclass
class Session:
    """One start of the league. `until`: when it stops, by `time.monotonic`; `jobs`: how many runs train at once."""

    league: League
    until: float
    jobs: int = 1
    results: Results = field(default_factory=Results)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    commit: str | None = field(default_factory=commit_of_code)

    def __post_init__(self) -> None:
        self.results, self.stages = Results.read(self.league.csv), plan.read_stages(self.league.stages)

    def say(self, text: str) -> None:
        left = self.seconds_left()
        print(f"{time.strftime('%H:%M:%S')}  {text}; {left:,.0f} s left ({in_words(left)})", flush=True)

    def check_time(self) -> None:
        if time.monotonic() > self.until:
            raise OutOfTime

    @property
    def steps(self) -> int:
        """Of the tables; as configured until the power is known."""
        return plan.steps_of(self.results, self.league) or self.league.steps

    def missing(self, part: str, *, first: bool = False) -> list[Job]:
        """Of a part; `first`: of those of seed 0."""
        jobs = self.results.missing(self.league.jobs(part, self.steps))
        return [job for job in jobs if not first or job.seed == 0]

    def seconds_left(self) -> float:
        """From the mean times of what is done; a variant without a run is taken to be as fast as the others."""
        rates: dict[str, list[float]] = {}
        for row in self.results.rows:
            rates.setdefault(row["variant"], []).append(float(row["seconds"]) / int(row["steps"]))
        usual = fmean(map(fmean, rates.values())) if rates else GUESSED_STEP
        runs = [(job.steps, rates.get(job.variant, [usual])) for part in PARTS for job in self.missing(part)]
        left = sum(steps * fmean(rate) for steps, rate in runs) / self.jobs
        for stage, guess in GUESSED.items():
            took = [one["took"] for one in self.stages.get(stage, {}).values()]
            wanted = len(self._each()) if stage in EACH else 1
            left += max(0, wanted - len(took)) * (fmean(took) if took else guess)
        return left

    @property
    def _checkpoints(self) -> dict[str, Path]:
        runs = plan.first_runs(self.league, self.steps)
        return {name: self.league.folder(job) / CHECKPOINTS / BEST for name, job in runs}

    def _each(self) -> list[str]:
        """The entries that are examined one by one: without a capacity."""
        some = self.league.examined
        return [one.variant for one in plan.ENTRIES if not some or one.variant in some]

    def run(self, part: str, *, first: bool = False) -> bool:
        """The runs that are missing, by one sweep for each capacity; whether all are finished then."""
        for name in dict.fromkeys(job.sweep for job in self.league.jobs(part, self.steps)):
            if jobs := [job for job in self.missing(part, first=first) if job.sweep == name]:
                self.say(f"{part}: {len(jobs)} runs in {self.league.outputs / 'sweeps' / name}")
                self._sweep(jobs)
        if failed := self.missing(part, first=first):
            print(f"{len(failed)} runs of {part} have no result, see {self._log}; the same command tries again")
        return not failed

    @property
    def _log(self) -> Path:
        return self.league.outputs / "league.log"

    def _sweep(self, jobs: Sequence[Job]) -> None:
        """The engine skips what is finished, and continues what was stopped or killed from its last checkpoint."""
        varied: dict[str, dict[str, None]] = {}
        for job in jobs:
            for key, value in job.varied.items():
                varied.setdefault(key, {})[str(value)] = None
        words = [f"{key}=choice({','.join(values)})" for key, values in varied.items()]
        if self.jobs > 1:
            words += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={self.jobs}"]
        command = [sys.executable, "-m", "switch_lm.train", "-m", "experiment=league", f"name={jobs[0].sweep}"]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            engine = subprocess.Popen([*command, f"outputs={self.league.outputs}", *words], stdout=log)
            try:
                while engine.poll() is None:
                    time.sleep(POLL)
                    self._collect(jobs)
                    self.check_time()
            except BaseException as error:  # a signal, or the time is over: it saves a checkpoint
                if not isinstance(
                    error, KeyboardInterrupt
                ):  # Ctrl-C has reached it, and a second would cut its saving short
                    engine.terminate()
                engine.wait()
                raise
            finally:
                self._collect(jobs)
        if engine.returncode == 2:  # refused, which it has said: another one is at work there, for example
            raise SystemExit(2)

    def _collect(self, jobs: Sequence[Job]) -> None:
        """Stores the runs that have finished. Only those of seed 0, which are measured later, keep their weights."""
        for job in self.results.missing(jobs):
            folder = self.league.folder(job)
            if (folder / RESULT).is_file() and (read_job(folder) or {}).get("status") == "done":
                row = plan.row_of(job, folder, machine=processor(), commit=self.commit)
                self.results = self.results.add(row, self.league.csv)
                limit = "" if job.capacity_factor is None else f", capacity factor {job.capacity_factor}"
                what = f"{job.part}: {job.variant}{limit}, seed {job.seed}, {job.steps} steps"
                self.say(f"{what}: {row['val_loss']:.4f} in {row['seconds']:.0f} s")
                if job.part != TABLE or job.seed:
                    for name in (BEST, LAST):
                        (folder / CHECKPOINTS / name).unlink(missing_ok=True)

    def measure(self, stage: str, measure: Measure) -> bool:
        """One stage, as far as it is not stored: of each entry, or of all at once. Whether nothing is missing now.

        What cannot be measured is said, and tried again by the next start.
        """
        complete = True
        done, paths = self.stages.setdefault(stage, {}), self._checkpoints
        units: dict[str, Any] = {name: paths[name] for name in self._each()} if stage in EACH else {"all": paths}
        stored = [name for name, one in done.items() if one.get("steps") == self.steps and not one.get("lacking")]
        for name in [name for name in units if name not in stored]:
            self.check_time()
            unit = units[name]
            needed = unit if stage in ONCE else {name: unit}
            lacking = [one for one, path in needed.items() if not path.is_file()]
            if lacking:
                complete = False
                print(
                    f"{stage}: not measured: {', '.join(lacking)}; a run of seed 0 failed, or its files are elsewhere"
                )
                if stage in EACH or plan.DENSE.variant in lacking:
                    continue
                unit = {one: path for one, path in unit.items() if one not in lacking}
            self.say(f"{stage}: {name}")
            started = time.monotonic()
            try:
                measured = measure(unit, self.league.repetitions) | ({"lacking": lacking} if lacking else {})
            except Exception as error:  # the rest of the league goes on without it
                print(f"{stage}: {name}: {type(error).__name__}: {error}", flush=True)
                complete = False
                continue
            facts = {"took": time.monotonic() - started, "commit": self.commit, "machine": processor()}
            done[name] = measured | facts | {"steps": self.steps}
            plan.store(self.league.stages, self.stages)
        return complete

    def play(self) -> bool:
        """Everything that is missing; whether no run failed. OutOfTime when the time is over.

        What is measured of trained routers comes as soon as those of seed 0 are trained: the other runs need not be
        made on the machine that has their weights.
        """
        from contest import measure  # with torch: not for --help, nor for the report

        complete = self.run(POWER)
        if (known := plan.power(self.results, self.league)) is not None:
            larger = "less" if known.doubles else "no less"
            print(f"power: switch and frozen differ by {abs(known.difference):.4f} nats, {larger} than the "
                  f"{known.resolved:.4f} that {self.league.seeds} seeds resolve: {self.steps} steps",
                  flush=True)  # fmt: skip
            self.run(TABLE, first=True)
            for stage in (*EACH, *ONCE):
                complete = self.measure(stage, getattr(measure, stage)) and complete
            for part in (TABLE, DENSE_CURVE):
                complete = self.run(part) and complete
        return complete
