"""What was run: commands, machines, and the runs that have no figures, or not all."""

from collections.abc import Sequence

from switch_lm.config.rules import show
from switch_lm.pages.document import Bullets, Cell, Code, Part, Table
from switch_lm.pages.numbers import count
from switch_lm.reporting.comparisons import Study
from switch_lm.reporting.controls import MACHINE
from switch_lm.reporting.keys import is_routing
from switch_lm.reporting.records import DONE, Record
from switch_lm.storage.files import read_json
from switch_lm.storage.run_folder import SWEEP

MOST_VALUES = 8  # of a key


def what_was_run(study: Study) -> tuple[Part, ...]:
    """Commands, facts, and the runs that have no figures, or not all."""
    sweeps = sorted({record.sweep for record in study.records if record.sweep is not None})
    plans = [plan for sweep in sweeps if (plan := read_json(sweep / SWEEP)) is not None]
    commands = [str(plan["command"]) for plan in plans if plan.get("command")]
    parts: list[Part] = [Code("\n".join(commands))] if commands else []
    parts.append(Bullets(tuple(_facts(study, plans))))
    unfinished = [(run, run.reason) for run in study.records if run.status != DONE]
    faulty = [(run, "; ".join(run.faults)) for run in study.records if run.faults]
    for caption, heading, runs in (
        ("Runs without a result", "Reason", unfinished),
        ("Runs of which not all is known", "What is missing", faulty),
    ):
        rows = tuple((Cell(_plain(run.name)), Cell(run.status), Cell(_plain(text))) for run, text in runs)
        parts += [Table(caption, ("Run", "Status", heading), rows)] if rows else []
    return tuple(parts)


def _facts(study: Study, plans: Sequence[dict[str, object]]) -> list[str]:
    used, facts = study.used, []
    for words, values in (
        ("Machine", {_machine(run) for run in used}),
        ("Versions", {_versions(run) for run in used}),
        ("Commit", {str(run.result.get("commit") or "") for run in used}),
        ("Text (sha256)", {str(run.result.get("corpus_sha256") or "") for run in used}),
        ("Started", {str(plan.get("started") or "") for plan in plans}),
    ):
        shown = sorted(_plain(value) for value in values if value)
        facts.append(f"{words}: {'; '.join(shown) if shown else 'not recorded'}.")
    planned = str([plan.get("jobs") for plan in plans])
    if any(run.sweep and run.overrides and str(run.overrides) not in planned for run in study.records):
        facts.append("The command of a sweep is that of its last start: other jobs were run by earlier ones.")
    if any(isinstance(n := plan.get("side_by_side"), int) and n > 1 for plan in plans):
        facts.append("Jobs ran side by side: their seconds are longer than those of a run alone.")
    return facts


def what_differs(study: Study) -> str:
    """The keys in which the runs differ, with their values, and the seeds; of routing keys those of sparse runs."""
    texts = []
    for key in differing_keys(study):
        of = study.sparse if is_routing(key) else study.variants
        if len(values := dict.fromkeys(v.shown(key) for v in of if key in v.config)) > 1:
            texts.append(f"`{key}` {', '.join(list(values)[:MOST_VALUES])}{', ...' * (len(values) > MOST_VALUES)}")
    seeds = ", ".join(map(str, sorted({run.seed for run in study.used if run.seed is not None})))
    runs = f"{count(len(study.used), 'run')} of {count(len(study.variants), 'variant')}"
    return f"{runs}{', which differ in' if len(study.used) > 1 else ':'} {'; '.join([*texts, f'`seed` {seeds}'])}."


def differing_keys(study: Study) -> list[str]:
    """The keys in which the runs that have a configuration differ, but for seed and name."""
    configs = [run.config for run in study.records if run.folder is not None and run.config]
    keys = sorted({key for config in configs for key in config} - {"seed", "name"})
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def _machine(run: Record) -> str:
    values = {key: run.result.get(f"hardware.{key}") for key in MACHINE}
    words = [str(values[key]) for key in ("device", "name", "precision") if values[key] is not None]
    words += [f"{values['threads']} threads"] if values["threads"] is not None else []
    words += ["compiled" if values["compile"] else "not compiled"] if isinstance(values["compile"], bool) else []
    return ", ".join(words)


def _versions(run: Record) -> str:
    versions = ((key.partition("."), value) for key, value in run.result.items())
    return ", ".join(f"{name} {show(value)}" for (start, _, name), value in versions if start == "versions")


def _plain(text: str) -> str:
    """Names and messages of others hold no markup of ours."""
    return text.replace("`", "'")
