"""Finds runs and their checkpoints."""

import json
import pickletools
import zipfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from switch_lm.config.paths import expanded
from switch_lm.config.schema import KEYS

OUTPUTS = Path(KEYS["outputs"].default)
CHECKPOINTS, BEST, LAST = "checkpoints", "best.ckpt", "last.ckpt"
START = "start.json"  # a number that rises with each start of a run: a clock may go back
WEIGHTS, EXPORT_CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"  # of an export
NAMES_SHOWN = 5


class RunError(Exception):
    """There is no such run; the message lists those that exist and says what to do."""


def find_run(name: str | None, outputs: Path = OUTPUTS) -> Path:
    """The folder of a run or an export, or a checkpoint file. `name`: a run, `sweep/job`, a path, or None: the newest.

    The newest is the one with a checkpoint that was started or resumed last. A name under `outputs` takes precedence
    over an equal path. RunError if there is none.
    """
    outputs, name = Path(expanded(str(outputs))), name and expanded(name)
    runs = list_runs(outputs)
    if name is None:
        saved = [run for run in runs.values() if checkpoints(run)]
        if not saved:
            raise RunError(f"no run under {outputs} has a checkpoint yet; train one with `python -m switch_lm.train`")
        return max(saved, key=start_order)
    if name.rstrip("/") in runs:
        return runs[name.rstrip("/")]
    path = Path(name)
    if name and (path.is_file() or _is_run(path)):
        return path
    raise RunError(_not_found(name, runs, outputs))


def list_runs(outputs: Path = OUTPUTS) -> dict[str, Path]:
    """The folders of all runs by name, and of all jobs of sweeps by `sweep/job`; runs take precedence."""
    runs, sweeps = outputs / "runs", outputs / "sweeps"
    jobs = {job.relative_to(sweeps).as_posix(): job for job in sorted(sweeps.glob("*/*")) if _is_run(job)}
    return jobs | {run.name: run for run in sorted(runs.glob("*")) if _is_run(run)}


def start_number(run: Path) -> int:
    """Which start of those in its outputs the run's last one was; 0 if nothing tells, as of a run of older versions."""
    try:
        return int(json.loads((run / START).read_bytes())["number"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def start_order(run: Path) -> tuple[int, int, str]:
    """Sorts runs by their last start; those without a number, which are older, by the time of their files."""
    files = checkpoints(run) or [path for path in (run / "config.yaml",) if path.is_file()]
    return start_number(run), max((path.stat().st_mtime_ns for path in files), default=0), str(run)


def checkpoints(run: Path) -> list[Path]:
    """The existing checkpoints of a run, the best one first."""
    return [path for name in (BEST, LAST) if (path := run / CHECKPOINTS / name).is_file()]


def run_of(checkpoint: Path) -> Path:
    """The folder of the run to which a checkpoint belongs, or else the folder in which it lies."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def run_name(checkpoint: Path) -> str:
    """The name of the run to which a checkpoint belongs, or else of the file."""
    of_folder = checkpoint.parent.name == CHECKPOINTS or checkpoint.name == WEIGHTS
    return run_of(checkpoint).resolve().name if of_folder else checkpoint.name


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, by its checksums; None if nothing is."""
    try:
        if checkpoint.stat().st_size == 0:
            return "it is empty"
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # zipfile raises a dozen types for random bytes
        return f"it is cut short or something else ({error or type(error).__name__})"
    return None if broken is None else f"its part {broken} has changed since it was written"


def newest_whole(folder: Path, but: Path | None = None) -> Path | None:
    """The undamaged checkpoint of a folder, other than `but`, of the latest step: `last.ckpt`, if it is intact."""
    if folder / LAST != but and damage(folder / LAST) is None:
        return folder / LAST
    paths = [path for path in folder.glob("*.ckpt") if path != but and damage(path) is None]
    return max(paths, key=lambda path: (step_of(path), path.stat().st_mtime_ns), default=None)


def step_of(checkpoint: Path) -> int:
    """The step of an undamaged checkpoint, read from its pickle without running it; -1 if it states none."""
    with zipfile.ZipFile(checkpoint) as archive:
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    before = None
    for code, value, _ in pickletools.genops(pickles[0] if pickles else b"."):
        if before == "global_step" and isinstance(value, int) and "PUT" not in code.name:
            return value
        before = value if "PUT" not in code.name and code.name != "MEMOIZE" else before
    return -1


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / CHECKPOINTS).is_dir() or (path / WEIGHTS).is_file()


def _not_found(name: str, runs: Iterable[str], outputs: Path) -> str:
    names = list(runs)
    jobs = [run for run in names if run.startswith(f"{Path(name).name}/")]
    if jobs:
        return f"{name!r} is a sweep; name one of its jobs: {_shown(jobs)}"
    rule = f"not a run under {outputs}, nor a path to a run folder or a .ckpt file"
    if not names:
        return f"{name!r} is {rule}; there is no run yet: train one with `python -m switch_lm.train`"
    near = get_close_matches(name, names, n=NAMES_SHOWN, cutoff=0.5)
    return f"{name!r} is {rule}; " + (f"did you mean: {_shown(near)}" if near else f"there are: {_shown(names[::-1])}")


def _shown(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
