"""Which folder a run writes to: a new one, or that of a run it continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from switch_lm.config.families import FAMILIES
from switch_lm.config.keys import ConfigError
from switch_lm.config.legs import with_new_leg
from switch_lm.config.paths import expanded
from switch_lm.config.plugins import command_line, not_loaded
from switch_lm.config.rules import flatten, show, unknown_key
from switch_lm.config.schema import KEYS, Config, changes_result
from switch_lm.storage.locks import Lock, TakenError, in_use
from switch_lm.storage.names import numbered, run_name
from switch_lm.storage.run_folder import CONFIG, RESULT, RunFolder, read_config, stated
from switch_lm.storage.runs import damage, newest_whole, start_order, step_of

HOW = ("trainer.device", "trainer.compile")  # how a run computes: may change on resume, which `prepare` reports
GOAL, LEGS = "trainer.max_steps", "optim.legs"  # a run takes its legs from its folder
OF_LEG = (GOAL, "trainer.val_every")  # may change where a leg begins
SHOWN = 5  # keys of a message
Differences = Mapping[str, str]  # by key, in words


def choose(config: Config, overrides: Mapping[str, Any] | None = None) -> RunFolder:
    """The folder for this run; ConfigError if it is used already, or if what `resume` names cannot be resumed.

    Nothing is created yet. `overrides`: those given, after which a run without a name is called.
    """
    runs, called = Path(config.outputs) / "runs", run_name(overrides or {}) or config.router.name
    if config.resume == "auto":
        return _newest_unfinished(runs, config, called)
    return _free(runs, config, called) if config.resume is None else _named(runs, config)


def create(run: RunFolder, config: Config, hardware: dict[str, Any]) -> tuple[RunFolder, Lock]:
    """`RunFolder.create`; if nobody chose the name, and another process took it, with the next number."""
    while run.called is not None and (in_use(run.path) or run.state != run.seen):
        run = _next_free(run.path.with_name(run.called), run.note)
    try:
        return run, run.create(config, hardware)
    except TakenError:  # only now
        if run.called is None:
            raise
        return create(_next_free(run.path.with_name(run.called), run.note), config, hardware)


def of_job(folder: Path, config: Config) -> RunFolder:
    """A sweep job's folder, which continues from its last checkpoint; ConfigError if it holds another configuration."""
    run = _looked_at(folder)
    if run.began and not run.nothing_to_lose and (different := differences(folder, config)):
        raise ConfigError(
            f"{folder} holds a run of another configuration ({_listed(different)}); a sweep's jobs are not trained "
            "longer or otherwise: give this sweep a name of its own: name=NAME"
        )
    return _continued(run, sweep=folder.parent)


def _looked_at(path: Path, note: str | None = None) -> RunFolder:
    """The folder as it is now. Looked at before anything else in it: what comes later is seen when it is created."""
    return RunFolder(path, seen=RunFolder(path).state, note=note)


def _next_free(path: Path, note: str | None) -> RunFolder:
    """The folder, or the next number's: of no run but one that failed, and in no other process's use."""
    folders = (_looked_at(folder, note) for folder in numbered(path))
    return replace(next(run for run in folders if run.nothing_to_lose and not in_use(run.path)), called=path.name)


def _free(runs: Path, config: Config, called: str, why: str | None = None) -> RunFolder:
    """A new folder, or one of the name that holds nothing to lose: a run that failed does not use up its name.

    `called`: the name of a run without one. `why`: why `resume=auto` continues none.
    """
    note = why and f"starts a new run: {why}"
    if config.name is None:
        return _next_free(runs / called, note)
    run = _looked_at(runs / config.name, note)
    if not run.nothing_to_lose:
        problem, fix = f"name={config.name}: {run.path} holds a run already", "choose another name"
        if (run.path / RESULT).is_file():
            look = command_line("switch_lm.generate", "--run", str(run.path))
            longer = f"train it longer with resume={config.name} trainer.max_steps=N"
            raise ConfigError(f"{problem}, which is finished; {fix}, {longer}, or look at it: {look}")
        if not run.began:
            raise ConfigError(f"name={config.name}: {run.path} holds other files already; {fix}")
        if config.resume == "auto":
            raise ConfigError(f"resume=auto: {run.path} cannot be continued: {why}; {fix}")
        raise ConfigError(f"{problem}; {fix}, or continue it with resume={config.name}")
    return run


def _newest_unfinished(runs: Path, config: Config, called: str) -> RunFolder:
    """The unfinished run of an equal configuration that was started last; else a new one that says why."""
    paths = [path for path in runs.glob("*" if config.name is None else config.name) if (path / CONFIG).is_file()]
    nearest, why = SHOWN, "there is no run yet" if config.name is None else f"there is no run {config.name} yet"
    if paths:
        why = "no unfinished run has this configuration"
    for path in sorted(paths, key=start_order, reverse=True):
        run = _looked_at(path)
        finished = (path / RESULT).is_file()
        try:
            different = differences(path, config)
        except ConfigError as error:  # a damaged configuration cannot be compared
            why = str(error) if nearest == SHOWN else why
            continue
        if not different and not finished:
            run = _continued(run)
            at = "its beginning: it has no checkpoint" if run.resumes_from is None else str(run.resumes_from)
            return replace(run, note=f"continues {path} from {at}")
        if len(different) < nearest:
            nearest = len(different)
            longer = f"; resume={path.name} trainer.max_steps=N trains that one longer"
            why = f"{path.name} has this configuration and is finished{longer}"
            if different:
                state = "is finished and " if finished else ""
                why = f"no unfinished run has this configuration; the nearest is {path.name}, which {state}differs: "
                why += _listed(different) + longer * (different.keys() == {GOAL})
    return _free(runs, config, called, why)


def _named(runs: Path, config: Config) -> RunFolder:
    path = runs / str(config.resume)
    run = _looked_at(path)
    if not (path / CONFIG).is_file():
        there = sorted((p for p in runs.glob("*") if (p / CONFIG).is_file()), key=start_order)[-SHOWN:]
        names = ", ".join(p.name for p in there) or "none"
        raise ConfigError(f"resume={config.resume}: {path} is not a run; the newest there are: {names}")
    _require_families(path)
    goal = goal_of(path)
    longer = config.trainer.max_steps > goal
    if not longer and (path / RESULT).is_file():
        raise ConfigError(
            f"resume={config.resume}: {path} is finished; to train it longer, repeat its command with "
            f"resume={config.resume} trainer.max_steps=N, N above its {goal}"
        )
    different = {key: words for key, words in differences(path, config).items() if not (longer and key in OF_LEG)}
    if different:
        raise ConfigError(
            f"resume={config.resume}: another configuration than that of the run: {_listed(different, most=None)}"
        )
    run = _continued(run)
    return _with_new_leg(run, goal, config.optim.on_resume) if longer else run


def own_goal(outputs: str, resume: str | None) -> int | None:
    """The last goal of the run that `resume` names, which may be that of a later leg; None if it names none."""
    path = Path(expanded(outputs), "runs", str(resume))
    return goal_of(path) if resume not in (None, "auto") and (path / CONFIG).is_file() else None


def goal_of(path: Path) -> int:
    """`trainer.max_steps` of a run, with all its legs. ConfigError: `read_config`."""
    return int(read_config(path)[GOAL])


def _with_new_leg(run: RunFolder, goal: int, how: str) -> RunFolder:
    """The run, to go on from its newest checkpoint to a higher goal than its own."""
    if run.resumes_from is None and (run.path / RESULT).is_file():
        raise ConfigError(f"{run.path} has no checkpoint to go on from; start a new run with another name")
    done = 0 if run.resumes_from is None else step_of(run.resumes_from)
    return replace(run, legs=tuple(with_new_leg(run.legs, done=done, goal=goal, how=how)), begins_leg=done > 0)


def _continued(run: RunFolder, sweep: Path | None = None) -> RunFolder:
    """The run, from its newest good checkpoint; one stopped before its first starts again in its own folder."""
    good = newest_whole(run.checkpoints)
    if good is None and (there := sorted(run.checkpoints.glob("*.ckpt"))):
        reasons = "; ".join(f"{checkpoint.name}: {damage(checkpoint)}" for checkpoint in there)
        raise ConfigError(
            f"{run.path}: no checkpoint of this run can be read ({reasons}); start a new run with another name, or "
            f"remove {run.checkpoints} to begin this one again"
        )
    legs = stated(run.path).get(LEGS, ()) if good is not None else ()
    return replace(run, resumes_from=good, sweep=sweep, legs=tuple(legs))


def differences(path: Path, config: Config) -> Differences:
    """The keys in which a run's configuration is another one than `config`, each in words. ConfigError: `read_config`.

    A key that the run's file lacks has the value that its absence implies; one that no configuration has is named.
    """
    stored, now = stated(path), flatten(asdict(config))
    then, different = read_config(path), {}
    for key in filter(changes_result, sorted(then)):
        if key in now and key not in (*HOW, LEGS) and then[key] != now[key]:
            unknown = then[key] is None and key not in stored
            was = "is not stated in its config.yaml" if unknown else f"was {show(then[key])}"
            different[key] = f"{key} {was}, now {show(now[key])}"
        elif key not in now and key not in KEYS:
            problem = f"{path / CONFIG} states {key}={show(then[key])}, which this version does not know"
            different[key] = f"{problem} ({unknown_key(key)})"
    return different


def _listed(different: Differences, most: int | None = SHOWN) -> str:
    lines = list(different.values())
    more = f"; and {len(lines) - most} more" if most is not None and len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def _require_families(path: Path) -> None:
    """PluginError, with what to set, if the run's router or optimizer comes from a plugin that is not loaded."""
    stored = stated(path)
    for group, families in FAMILIES.items():
        name = stored.get(f"{group}.name")
        if name is not None and str(name) not in families:
            raise not_loaded(str(path), group, name, stored.get("plugins"))
