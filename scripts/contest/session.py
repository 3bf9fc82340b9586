"""One start of the league: its runs, and what is measured of trained routers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.machine import processor
from study.runner import Runner

from contest import plan
from contest.plan import PARTS, POWER, TABLE, Job, League, Results
from switch_lm.storage.runs import BEST, CHECKPOINTS

EACH, ONCE = ("certificate", "explanation"), ("seconds", "generation")  # of each entry; of all together, in turns
GUESSED = {"certificate": 40.0, "explanation": 20.0, "seconds": 200.0, "generation": 100.0}  # before one was measured
Measure = Callable[..., dict[str, Any]]


class OutOfTimeError(Exception):
    """The time that was given is over; everything that is finished is stored."""


class Session:
    """One start of the league. `until`: when it stops, by `time.monotonic`; `width`: how many runs train at once."""

    def __init__(self, league: League, until: float, width: int = 1) -> None:
        self.league, self.stages = league, plan.read_stages(league.stages)
        self.runner = Runner(league.csv, Results.read(league.csv), self._jobs, width, until, self._seconds_of_stages)

    def _steps(self, results: Results) -> int:
        """Of the tables; as configured until the power is known."""
        return plan.steps_of(results, self.league) or self.league.steps

    @property
    def steps(self) -> int:
        return self._steps(self.runner.results)

    def _jobs(self, results: Results) -> Iterator[Job]:
        steps = self._steps(results)
        return (job for part in PARTS for job in self.league.jobs(part, steps))

    def _seconds_of_stages(self) -> float:
        """Of those that are left, from the mean times of what is done."""
        left = 0.0
        for stage, guess in GUESSED.items():
            took = [one["took"] for one in self.stages.get(stage, {}).values()]
            wanted = len(self._each()) if stage in EACH else 1
            left += max(0, wanted - len(took)) * (fmean(took) if took else guess)
        return left

    @property
    def _checkpoints(self) -> dict[str, Path]:
        runs = plan.first_runs(self.league, self.steps)
        return {name: job.folder / CHECKPOINTS / BEST for name, job in runs}

    def _each(self) -> list[str]:
        """The entries that are examined one by one: without a capacity."""
        some = self.league.examined
        return [one.variant for one in plan.ENTRIES if not some or one.variant in some]

    def measure(self, stage: str, measure: Measure) -> bool:
        """One stage, as far as it is not stored: of each entry, or of all at once. Whether nothing is missing now.

        What cannot be measured is said, and tried again by the next start.
        """
        complete = True
        done, paths = self.stages.setdefault(stage, {}), self._checkpoints
        units: dict[str, Any] = {name: paths[name] for name in self._each()} if stage in EACH else {"all": paths}
        stored = [name for name, one in done.items() if one.get("steps") == self.steps and not one.get("lacking")]
        for name in [name for name in units if name not in stored]:
            if self.runner.is_over:
                raise OutOfTimeError
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
            self.runner.say(f"{stage}: {name}")
            started = time.monotonic()
            try:
                measured = measure(unit, self.league.repetitions) | ({"lacking": lacking} if lacking else {})
            except Exception as error:  # the rest of the league goes on without it
                print(f"{stage}: {name}: {type(error).__name__}: {error}", flush=True)
                complete = False
                continue
            facts = {"took": time.monotonic() - started, "commit": self.runner.commit, "machine": processor()}
            done[name] = measured | facts | {"steps": self.steps}
            plan.store(self.league.stages, self.stages)
        return complete

    def play(self) -> bool:
        """Everything that is missing; whether no run failed. OutOfTimeError when the time is over.

        What is measured of trained routers comes as soon as those of seed 0 are trained: the other runs need not be
        made on the machine that has their weights.
        """
        from contest import measure  # with torch: not for --help, nor for the report

        complete = self._run(lambda job: job.part == POWER)
        if (known := plan.power(self.runner.results, self.league)) is not None:
            larger = "less" if known.doubles else "no less"
            print(f"power: switch and frozen differ by {abs(known.difference):.4f} nats, {larger} than the "
                  f"{known.resolved:.4f} that {self.league.seeds} seeds resolve: {self.steps} steps",
                  flush=True)  # fmt: skip
            self._run(lambda job: job.part == TABLE and job.seed == 0)
            for stage in (*EACH, *ONCE):
                complete = self.measure(stage, getattr(measure, stage)) and complete
            complete = self._run(lambda job: True) and complete
        return complete

    def _run(self, wanted: Callable[[Job], bool]) -> bool:
        complete = self.runner.run(wanted)
        if self.runner.is_over and not complete:
            raise OutOfTimeError
        return complete
