"""Hydra's launchers, made to return an outcome for every job: a lost worker ends its own job and no other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from switch_lm.commandline.signals import Signalled
from switch_lm.storage.run_folder import SWEEP, RunFolder, Stopped
from switch_lm.sweep.jobs import ENDED, Sweep, fail, outcome, read_jobs, recorded, show_row
from switch_lm.sweep.table import print_left
from switch_lm.sweep.workers import deaths, passed_on


class Launches:
    """Whether a job was launched yet: what fails earlier is the command line or the configuration."""

    begun = False


@contextmanager
def every_job_returned(*, planned: bool = False) -> Iterator[Launches]:
    """In its block each sweeper gets a launcher that returns an outcome for every job; its end unlocks the sweep.

    `planned`: no job is launched; the sweep prints how long they take.

    Hydra has no hook around a launcher, and loads launchers from its own namespace only.
    """
    plugins, launches = Plugins.instance(), Launches()

    def instantiate_launcher(**arguments: Any) -> Launcher:
        inner = Plugins.instantiate_launcher(plugins, **arguments)
        return _Complete(inner, Path(str(arguments["config"].hydra.sweep.dir)), launches)

    plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign,assignment]
    Sweep.is_here, Sweep.is_planned = True, planned
    try:
        yield launches
    finally:
        del plugins.instantiate_launcher
        Sweep.is_here = Sweep.is_planned = False
        Sweep.locks.close()


class _Complete(Launcher):
    """Around another launcher, which is set up already."""

    def __init__(self, inner: Launcher, sweep: Path, launches: Launches) -> None:
        self.inner, self.sweep, self.launches = inner, sweep, launches

    def setup(self, **_: Any) -> None:
        pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns val_loss for each job, infinity for one that failed. A signal ends it: what is left is printed."""
        self.launches.begun = True
        try:
            # Equal jobs of a search run once: two at once in one folder would lock each other out.
            once = list({tuple(overrides): overrides for overrides in job_overrides}.values())
            returned = dict(zip(map(tuple, once), self._outcomes(once, initial_job_idx), strict=True))
            return [returned[tuple(overrides)] for overrides in job_overrides]
        except (Signalled, Stopped, KeyboardInterrupt) as stop:
            plan = RunFolder(self.sweep).read_json(SWEEP) or {}
            jobs = list(enumerate(job_overrides, initial_job_idx))
            if isinstance(stop, Signalled) and all(
                recorded(self.sweep, plan, *job).get("status") == "done" for job in jobs
            ):  # it came in the last job's last validation
                return [_completed(outcome(self.sweep, plan, *job)) for job in jobs]
            print_left(plan, read_jobs(self.sweep))
            raise

    def _outcomes(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A launcher that raises says neither which job it lost nor what became of the others.

        One whose process died first is that job: it has failed, and the others, which joblib then ends too, are
        launched again. Otherwise each half is launched again until a job is alone; jobs that ended are not. If no job
        began at all, no other attempt would help.
        """
        jobs = list(enumerate(job_overrides, initial_job_idx))
        plan = RunFolder(self.sweep).read_json(SWEEP) or {}
        if all(recorded(self.sweep, plan, *job).get("status") in ENDED for job in jobs):
            return [_completed(outcome(self.sweep, plan, *job)) for job in jobs]
        problem: Exception | None = None
        try:
            with deaths() as ended, _submitit_returns_errors(), passed_on():
                results: list[JobReturn | Exception] = list(self.inner.launch(job_overrides, initial_job_idx))
        except Exception as error:
            problem, results = error, [error for _ in jobs]
        if problem is not None:
            records = [recorded(self.sweep, plan, *job) for job in jobs]
            if self._fail_the_first(records, ended, plan, problem):
                return self._outcomes(job_overrides, initial_job_idx)
            if len(jobs) > 1 and any("status" in record for record in records):
                middle = len(jobs) // 2
                half = self._outcomes(job_overrides[:middle], initial_job_idx)
                return [*half, *self._outcomes(job_overrides[middle:], initial_job_idx + middle)]
        for job, result in zip(jobs, results, strict=True):
            record, error_or_none = recorded(self.sweep, plan, *job), _error(result)
            if error_or_none is not None and record.get("status") not in ENDED:
                fail(self.sweep, plan, record, error_or_none)
            elif (
                record.get("status") in ENDED and "submitit" in type(self.inner).__module__
            ):  # whose workers print to files of their own
                show_row(self.sweep, plan, record)
        return [_completed(outcome(self.sweep, plan, *job)) for job in jobs]

    def _fail_the_first(
        self, records: Sequence[dict[str, Any]], ended: Mapping[int, float], plan: Mapping[str, Any], problem: Exception
    ) -> bool:
        """Fails the job whose process died first of all workers; False if that one had no job."""
        first = min(ended.values(), default=0.0)
        lost = [one for one in records if one.get("status") == "running" and ended.get(one.get("process", 0)) == first]
        for record in lost:
            fail(self.sweep, plan, record, problem)
        return bool(lost)


def _error(result: JobReturn | Exception) -> Exception | None:
    if isinstance(result, Exception):
        return result
    return None if result.status == JobStatus.COMPLETED else result._return_value  # its public name raises and prints


def _completed(value: float) -> JobReturn:
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = value
    return returned


@contextmanager
def _submitit_returns_errors() -> Iterator[None]:
    """Hydra's launcher waits for each of submitit's jobs in turn, and would leave the others at the first error."""
    try:
        from submitit import Job
    except ImportError:
        yield
        return
    results = Job.results

    def results_or_error(job: Any) -> list[Any]:
        try:
            return list(results(job))
        except Exception as error:
            return [error]

    Job.results = results_or_error
    try:
        yield
    finally:
        Job.results = results
