"""What `train --plan` prints of a sweep: its jobs, and how long each and all of them take here."""

import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from switch_lm.config.durations import in_words
from switch_lm.config.keys import ConfigError
from switch_lm.config.rules import show
from switch_lm.config.schema import Config
from switch_lm.storage.run_folder import RESULT, RunFolder
from switch_lm.sweep.grid import Grid, as_key
from switch_lm.sweep.jobs import job_folder, plan_of, threads_of_job
from switch_lm.sweep.table import Plan, plan_in_words
from switch_lm.text.given import CorpusError, TextError
from switch_lm.training.start import ready

MOST_ROWS = 50
Job = tuple[Mapping[str, Any], Config, Path]  # what varies, the configuration, the folder


def end_with_times(config: DictConfig, grid: Grid, folder: Path, checked: Mapping[str, Config]) -> NoReturn:
    """Prints them and ends the process: Hydra would make a warning of an exception, and launch the jobs.

    `checked`: configurations of the sweep by `as_key`. ConfigError and TextError are raised.
    """
    plan, threads = plan_of(config, grid, began=None), threads_of_job(config.hydra.launcher)
    known = [(values, checked[as_key(values)]) for values in plan["jobs"] or [] if as_key(values) in checked]
    jobs: list[Job] = [(values, one, job_folder(folder, values)) for values, one in known]
    jobs = jobs or [({}, one, folder / "none") for one in checked.values()]  # of a search
    for _, one, _ in jobs:
        one.trainer.threads = one.trainer.threads or threads
    try:
        print_times(plan, jobs, notes=grid.notes)
    except (ConfigError, TextError):
        raise
    except Exception as error:
        print(error, file=sys.stderr) if isinstance(error, CorpusError) else traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


def print_times(plan: Plan, jobs: Sequence[Job], *, notes: Sequence[str]) -> None:
    """`jobs`: all of the sweep, or of a large one and a search some of them. One job's step is timed."""
    print("\n".join(plan_in_words(plan, notes)), flush=True)
    done = [(folder / RESULT).is_file() for _, _, folder in jobs]
    configs = [config for _, config, _ in jobs]
    with ready(configs[0], RunFolder(Path(configs[0].outputs))) as training:
        from switch_lm.training.forecast import of_each

        start, seconds = of_each(training, configs)
    for (values, config, _), takes, is_done in list(zip(jobs, seconds, done, strict=True))[:MOST_ROWS]:
        words = " ".join(f"{key}={show(value)}" for key, value in values.items()) or "(as configured)"
        print(f"  {words}: " + ("done" if is_done else f"{config.trainer.max_steps:,} steps, about {in_words(takes)}"))
    if plan["num_jobs"] > MOST_ROWS:
        print(f"  ... {plan['num_jobs']:,} jobs in all")
    left = [takes for takes, is_done in zip(seconds, done, strict=True) if not is_done]
    number = len(left) if len(jobs) == plan["num_jobs"] else plan["num_jobs"]
    total = start + math.ceil(number / plan["side_by_side"]) * sum(left) / max(1, len(left))
    side = f", {plan['side_by_side']} at a time" if plan["side_by_side"] > 1 else ""
    how = "estimated from a timed step of the first job and the matrix products of each job"
    print(
        f"about {in_words(total)} on this machine for {number:,} jobs{side} ({how})" if number else "all jobs are done"
    )
